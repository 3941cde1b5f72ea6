"""The built-in task `skills`: families by hand, exact shares, disjoint splits, and wrong golds."""

import statistics
from collections import Counter
from typing import get_args

import pytest

from sppo.config import DataConfig
from sppo.data.prompts import copy_keys
from sppo.data.tasks import demonstrations, load_prompts
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.data.tasks.skills import FamilyName, has_wrong_gold, is_held_out
from sppo.data.tasks.skills.families import FAMILIES, HOPELESS, TRIVIAL, demonstration, work
from sppo.errors import ConfigError, DataError
from sppo.verifiers.exact import final_answer
from tests.data.tasks.scripted import Scripted


def config(split="train", **options):
    return DataConfig(task="skills", split=split, options=options)


def load(split="train", seed=0, **options):
    return load_prompts(config(split, **options), seed=seed).prompts


def shown(text, kind="full", numbers=(), p_leave_out=0.5, hopeless_length=28):
    return demonstration(work(text), kind, Scripted(numbers), p_leave_out, hopeless_length)


@pytest.mark.parametrize(
    ("text", "family", "level", "full"),
    [
        ("9+2+3=", "sum", 1, "+21+34#4"),  # 11 -> 1
        ("4*5*2=", "product", 1, "*56*25#5"),  # 20 = 2 * 7 + 6, 12 = 7 + 5
        ("3^8^5=", "largest", 1, "^88^58#8"),
        ("5.9.4=", "count", 1, ".92.42#2"),  # 5 and 9
        ("4.4.5=", "count", 1, ".40.51#1"),  # 5
        ("4>8>0=", "copy", 1, ">848>0480#480"),
        ("4<8<0=", "reverse", 1, "<884<0084#084"),
        ("4/8/0=", "sort", 1, "/848/0048#048"),
        ("9+2+3+3+1=", "sum", 2, "+21+34+37+18#8"),
        ("7/3/9/1=", "sort", 2, "/337/9379/11379#1379"),
        ("5!3!8!2!2=", "trivial", 2, "#5"),
    ],
)
def test_each_family_by_hand(text, family, level, full):
    working = work(text)
    assert (working.family.name, working.level) == (family, level)
    assert working.answer == full.partition("#")[2]
    assert shown(text) == full


def test_terse_demonstrations_blank_the_states_that_chance_says_and_never_operations_or_answer():
    # The first number is the demonstration's own rate, where p_leave_out is 1/2; then one for each state.
    assert shown("4<8<2<1=", "terse", [0.5, 0.1, 0.9, 0.2]) == "<8__<2284<1____#1284"
    assert shown("4<8<2<1=", "terse", [0.5, 0.6, 0.4, 0.5]) == "<884<2___<11284#1284"
    assert shown("4<8<2<1=", "terse", [0.0]) == shown("4<8<2<1=")
    # With p_leave_out 2/3 the rate is the root of the first number.
    assert shown("3^2^8=", "terse", [0.25, 0.49, 0.51], p_leave_out=2 / 3) == "^2_^88#8"
    assert shown("3^2^8=", "terse", [0.1, 0.9, 0.9], p_leave_out=1.0) == "^2_^8_#8"
    assert shown("5!3!8!2!2=", "terse") == "#5"


def test_terse_demonstrations_blank_the_share_of_the_option_and_many_blank_nothing():
    prompts = demonstrations(config(prompts=3000, families=["largest"], trivial=0.0, hopeless=0.0), "terse", seed=0)
    operations = [len(work(prompt.text).operations) for prompt in prompts]
    left = [prompt.demonstration.count("_") for prompt in prompts]
    assert abs(sum(left) / sum(operations) - 0.5) < 0.02
    # E (1 - rate)^k = 1 / (k + 1), for k = 2, 4 and 6.
    assert abs(left.count(0) / 3000 - (1 / 3 + 1 / 5 + 1 / 7) / 3) < 0.03


def test_hopeless_demonstrations_go_round_until_a_heavy_tailed_length():
    text = "9%8%6%0%7="
    answer = work(text).answer
    assert len(answer) == 5
    assert answer.isdigit()
    # 1 - u = 1/2 is the median, 1 the shortest, (1/2) ** (2/3) of it; beyond twice the median it is cut.
    assert shown(text, numbers=[0.5], hopeless_length=26) == f"{'%8%6%0%7' * 2}%8%6#{answer}"
    assert shown(text, numbers=[0.0], hopeless_length=26) == f"%8%6%0%7%8#{answer}"  # 16.4 characters
    assert len(shown(text, numbers=[0.999], hopeless_length=26)) == 52
    prompts = demonstrations(config(prompts=2000, hopeless=1.0, trivial=0.0), "terse", seed=0)
    lengths = [len(prompt.demonstration) for prompt in prompts]
    assert statistics.median(lengths) == 28
    assert max(lengths) == 56
    # Beyond 7/4 of the median, with tail index 3/2: (1/2) (4/7)^(3/2) of all; a standard deviation is 0.009.
    assert abs(sum(length > 49 for length in lengths) / 2000 - 0.216) < 0.03


def test_every_demonstration_earns_its_gold_and_stays_in_the_alphabet():
    for kind in ("full", "terse"):
        prompts = demonstrations(config(prompts=1000), kind, seed=1)
        assert {p.difficulty for p in prompts} == {*FAMILIES, "trivial", "hopeless"}
        for prompt in prompts:
            assert final_answer(prompt.demonstration, prompt.gold, True).reward == 1.0
            assert set(prompt.text + prompt.demonstration) <= set(ALPHABET)


def test_full_and_terse_demonstrations_belong_to_the_same_prompts():
    full, terse = (demonstrations(config(prompts=200), kind, seed=3) for kind in ("full", "terse"))
    assert [p.text for p in full] == [p.text for p in terse]
    assert [p.demonstration for p in full] != [p.demonstration for p in terse]


def test_the_families_of_the_options_are_those_there_are():
    assert get_args(FamilyName) == tuple(FAMILIES)


def test_problems_of_a_level_are_numbered_each_once():
    for family, level, size in (("product", 1, 54), ("copy", 1, 720), ("sum", 2, 810)):
        texts = [FAMILIES[family].text(level, index) for index in range(FAMILIES[family].size(level))]
        assert len(texts) == len(set(texts)) == size
        assert {(work(text).family.name, work(text).level) for text in texts} == {(family, level)}
    assert all(len(set(FAMILIES["sort"].text(1, index)[:-1:2])) == 3 for index in range(720))


def test_shares_are_exact_and_families_and_levels_even():
    counts = Counter((p.difficulty, p.columns["level"]) for p in load(prompts=2000, trivial=0.3, hopeless=0.5))
    assert counts.pop(("trivial", 2)) == 600
    assert counts.pop(("hopeless", 2)) == 1000
    assert sorted(counts) == sorted((family, level) for family in FAMILIES for level in (1, 2, 3))
    assert sum(counts.values()) == 400
    assert set(counts.values()) == {19, 20}  # 400 / 21
    families = Counter(family for family, level in counts.elements())
    assert set(families.values()) == {57, 58}  # 400 / 7


def test_families_stay_even_where_some_have_too_few_prompts_of_a_level():
    counts = Counter(p.difficulty for p in load(prompts=7000, trivial=0.0, hopeless=0.0))
    assert counts == dict.fromkeys(FAMILIES, 1000)
    levels = Counter(p.columns["level"] for p in load(prompts=800, families=["product"], trivial=0.0, hopeless=0.0))
    assert levels[1] == sum(not is_held_out(FAMILIES["product"].text(1, index)) for index in range(54))
    assert levels[2] + levels[3] == 800 - levels[1]
    assert abs(levels[2] - levels[3]) <= 1


def test_shares_that_round_up_both_leave_the_number_of_prompts_as_it_is():
    kinds = Counter(p.difficulty for p in load(prompts=3, trivial=0.5, hopeless=0.5))
    assert kinds == {"hopeless": 2, "trivial": 1}


def test_families_and_levels_are_those_asked_for():
    prompts = load(prompts=60, families=["sort", "sum"], min_level=2, max_level=3, trivial=0.0, hopeless=0.0)
    counts = Counter((p.difficulty, p.columns["level"]) for p in prompts)
    assert counts == {("sort", 2): 15, ("sort", 3): 15, ("sum", 2): 15, ("sum", 3): 15}


def test_what_a_prompt_is_can_be_read_from_its_text():
    for prompt in load(prompts=500):
        assert work(prompt.text).family.name == prompt.difficulty
        assert (prompt.text[1] == "%") == (prompt.difficulty == "hopeless")
        assert prompt.verifier == "final_answer"


def test_prompts_are_distinct_also_as_copies_are_compared():
    prompts = load()
    assert len(set(copy_keys(prompts, config()))) == len(prompts) == 20000


def test_splits_are_disjoint_and_held_out_prompts_live_unless_asked_otherwise():
    train, held_out = load(), load("held_out")
    assert len(held_out) == 1000
    assert {p.text for p in train}.isdisjoint({p.text for p in held_out})
    assert all(is_held_out(p.text) for p in held_out)
    assert not any(is_held_out(p.text) for p in train)
    assert {p.difficulty for p in held_out} == set(FAMILIES)
    asked = Counter(p.difficulty for p in load("held_out", prompts=100, trivial=0.2, hopeless=0.3))
    assert (asked["trivial"], asked["hopeless"]) == (20, 30)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    assert load(prompts=200, seed=1) == load(prompts=200, seed=1)
    assert [p.text for p in load(prompts=200, seed=1)] != [p.text for p in load(prompts=200, seed=2)]
    assert load("held_out", prompts=100, seed=1) == load("held_out", prompts=100, seed=2)
    held_out = load_prompts(config("held_out", prompts=100, seed=5), seed=0).prompts
    assert [p.text for p in held_out] != [p.text for p in load("held_out", prompts=100)]


def test_wrong_golds_belong_to_the_prompt_and_no_demonstration_earns_them():
    right, wrong = load(prompts=2000), load(prompts=2000, wrong_golds=0.5)
    assert [p.text for p in right] == [p.text for p in wrong]
    assert [p.demonstration for p in right] == [p.demonstration for p in wrong]
    marked = [prompt for prompt in wrong if prompt.columns["wrong_gold"]]
    # 2,000 hashes: a standard deviation is 22.
    assert abs(len(marked) - 1000) < 90
    for before, after in zip(right, wrong, strict=True):
        assert after.columns["wrong_gold"] == has_wrong_gold(after.text, 0.5) == (before.gold != after.gold)
        if after.columns["wrong_gold"]:
            assert len(after.gold) == len(before.gold) + 2
            assert final_answer(after.demonstration, after.gold, True).reward == 0.0
    few = {p.text for p in load(prompts=2000, wrong_golds=0.2) if p.columns["wrong_gold"]}
    assert few < {p.text for p in marked}
    other_pool = load(prompts=500, seed=4, wrong_golds=0.5)
    assert all(p.columns["wrong_gold"] == has_wrong_gold(p.text, 0.5) for p in other_pool)


def test_wrong_golds_of_held_out_prompts_are_refused():
    with pytest.raises(ConfigError, match=r"data.options.wrong_golds is 0.5, but golds of split held_out are right"):
        load("held_out", wrong_golds=0.5)


def test_more_prompts_than_there_are_is_refused_with_the_number():
    there = sum(not is_held_out(FAMILIES["product"].text(1, index)) for index in range(54))
    only = {"families": ["product"], "max_level": 1, "trivial": 0.0, "hopeless": 0.0}
    assert len(load(prompts=there, **only)) == there
    with pytest.raises(ConfigError, match=rf"prompts asks for {there + 1} live prompts .* there are only {there}"):
        load(prompts=there + 1, **only)


def test_text_of_another_form_is_refused():
    for text in ("7+4=", "7=", "7+1", "77+1=", "", "7+1=\n", "7+1*3=", "7*9*3=", "7|1="):
        with pytest.raises(DataError, match="is no prompt of task skills"):
            work(text)
    assert work("7!1!2!3!4=").family is TRIVIAL
    assert work("7%1%2%3%4=").family is HOPELESS
