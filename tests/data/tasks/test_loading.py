"""Loading prompts: published layouts, your own rows, ids, bad rows, notes, and what each user mistake is told."""

import pytest

from sppo.config import DataConfig
from sppo.data.tasks import TASKS, demonstrations, load_prompts, prompt_key
from sppo.data.tasks.problem import BOXED_INSTRUCTION
from sppo.errors import ConfigError, DataError, SppoError


def load(rows, require_gold=True, **fields):
    return load_prompts(DataConfig(**fields), seed=0, rows=rows, require_gold=require_gold)


def fails(kind, rows, *words, **fields):
    with pytest.raises(kind) as caught:
        load(rows, **fields)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def chat(text):
    return ({"role": "user", "content": text},)


def verl_row(text, gold, index):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": text, "role": "user"}],
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": {"index": index},
    }


# ---- layouts


def test_the_table_names_every_task_by_its_own_name():
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    assert [name for name, task in TASKS.items() if task.built_in] == ["chain_arithmetic", "skills"]
    assert all(task.built_in == (task.options is not None) for task in TASKS.values())


def test_verl_layout_keeps_its_own_instruction_and_its_id():
    row = verl_row("What is 1+1? Please output the final answer within \\boxed{}.", "2", "9a9b")
    (prompt,) = load([row], task="dapo_math").prompts
    assert prompt.id == "9a9b"
    assert prompt.content == chat("What is 1+1? Please output the final answer within \\boxed{}.")
    assert (prompt.gold, prompt.verifier) == ("2", "math")
    assert prompt.columns == {key: value for key, value in row.items() if key != "prompt"}


def test_hub_layout_of_math500_gets_the_instruction_and_the_level():
    row = {
        "problem": "What is $1+1$?",
        "solution": "...",
        "answer": "2",
        "level": 5,
        "unique_id": "test/algebra/1.json",
    }
    (prompt,) = load([row], task="math500").prompts
    assert prompt.content == chat(f"What is $1+1$?\n{BOXED_INSTRUCTION}")
    assert (prompt.id, prompt.gold, prompt.difficulty) == ("test/algebra/1.json", "2", "Level 5")
    assert "problem" not in prompt.columns
    assert prompt.columns["solution"] == "..."


def test_deepscaler_rows_have_no_id_and_are_numbered_from_1():
    rows = [
        {"problem": "A?", "answer": "1", "solution": ""},
        {"problem": "B?", "answer": "\\frac{1}{2}", "solution": ""},
    ]
    assert [p.id for p in load(rows, task="deepscaler").prompts] == ["deepscaler/1", "deepscaler/2"]


def test_gsm8k_takes_the_number_and_makes_a_boxed_demonstration():
    row = {
        "question": "How many?",
        "answer": "16 - 3 = <<16-3=13>>13 eggs.\nTimes 100: $<<13*100=1300>>1,300.\n#### 1,300",
    }
    (prompt,) = load([row], task="gsm8k").prompts
    assert prompt.gold == "1300"
    assert prompt.demonstration == "16 - 3 = 13 eggs.\nTimes 100: $1,300.\nThe answer is \\boxed{1300}"
    assert prompt.content == chat(f"How many?\n{BOXED_INSTRUCTION}")
    assert "<<16-3=13>>" in prompt.columns["answer"]


def test_rows_stay_plain_text_and_dots_reach_into_structs():
    rows = [{"text": "2+2=", "reward_model": {"ground_truth": 4}, "difficulty": "easy", "note": "x"}]
    (prompt,) = load(rows, prompt_column="text", answer_column="reward_model.ground_truth", verifier="exact").prompts
    assert (prompt.content, prompt.gold, prompt.verifier, prompt.difficulty) == ("2+2=", "4", "exact", "easy")
    assert prompt.columns == {"reward_model": {"ground_truth": 4}, "difficulty": "easy", "note": "x"}


def test_rows_may_be_any_iterable_of_chats():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?", "name": None}]
    (prompt,) = load({"prompt": turns, "answer": "4"} for _ in range(1)).prompts
    assert prompt.content == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"})
    assert prompt.text == "Be brief.\n2+2?"


@pytest.mark.parametrize(("value", "gold"), [(4, "4"), (4.0, "4"), (0.5, "0.5"), (" 4 ", "4"), (-3, "-3")])
def test_numbers_become_text(value, gold):
    assert load([{"prompt": "?", "answer": value}]).prompts[0].gold == gold


# ---- instruction and system prompt


def test_instruction_is_added_to_the_last_user_turn_and_an_empty_one_removes_the_default():
    row = {"problem": "A?", "answer": "1"}
    assert load([row], task="deepscaler", instruction="Box it.").prompts[0].content == chat("A?\nBox it.")
    assert load([row], task="deepscaler", instruction="").prompts[0].content == chat("A?")
    assert load([{"prompt": "A?", "answer": "1"}], instruction="Box it.").prompts[0].content == "A?\nBox it."
    # An explicit instruction is added even where the data brings its own.
    (prompt,) = load([verl_row("A? Box it.", "1", 0)], task="dapo_math", instruction="Be brief.").prompts
    assert prompt.content == chat("A? Box it.\nBe brief.")


def test_system_prompt_comes_first_and_turns_plain_text_into_a_chat():
    system = {"role": "system", "content": "Think."}
    assert load([{"prompt": "A?", "answer": "1"}], system_prompt="Think.").prompts[0].content == (system, *chat("A?"))
    (prompt,) = load([verl_row("A?", "1", 0)], task="dapo_math", system_prompt="Think.").prompts
    assert prompt.content == (system, *chat("A?"))


def test_two_system_messages_are_refused():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    fails(DataError, [{"prompt": turns, "answer": "4"}], "row 1 begins with a system message", system_prompt="Think.")


# ---- ids, copies, limit


def test_ids_are_made_unique():
    rows = [{"prompt": f"{i}?", "answer": "1", "id": name} for i, name in enumerate(["a", "a", "a#2", "b", None, 7])]
    assert [p.id for p in load(rows).prompts] == ["a", "a#2", "a#2#2", "b", "rows/5", "rows/7"]


def test_dapo_rows_that_are_copies_in_everything_are_read_once():
    rows = [verl_row("A?", "1", "x"), verl_row("B?", "2", "y"), verl_row("A?", "1", "x"), verl_row("A?", "1", "z")]
    loaded = load(rows, task="dapo_math")
    assert [p.id for p in loaded.prompts] == ["x", "y", "z"]
    assert loaded.notes[0] == "dapo_math: 1 rows left out, exact copies of earlier rows"
    # Other tasks keep every row: AIME files repeat problems on purpose.
    assert len(load(rows, task="aime24").prompts) == 4


def test_limit_takes_the_first_rows_and_reads_no_further():
    def endless():
        number = 0
        while True:
            number += 1
            yield {"prompt": f"{number}?", "answer": "1"}

    assert [p.text for p in load(endless(), limit=3).prompts] == ["1?", "2?", "3?"]
    fails(ConfigError, [{}], "data.limit is 0", limit=0)


def test_notes_count_repeated_prompts_and_conflicting_answers():
    rows = [("Find $x + 1$.", "1"), ("find x+1", "2"), ("Find x - 1.", "3"), ("Find $x - 1$", "3"), ("Find y.", "4")]
    loaded = load([{"prompt": text, "answer": gold} for text, gold in rows])
    assert len(loaded.prompts) == 5
    assert loaded.notes == (
        "rows: 2 of 5 rows repeat an earlier prompt, 3 are distinct (letters, digits and operators compared); "
        "1 repeated prompt has conflicting answers as text, as in rows 1, 2; sppo audit says more",
    )


def test_prompt_key_ignores_layout_but_no_sign_digit_or_decimal_point():
    assert prompt_key("Find  $\\frac{2n - 1}{n}$.") == prompt_key("find \\(\\frac{2n-1}{n}\\)") == "findfrac2n-1n"
    assert prompt_key("2n - 1") != prompt_key("2n + 1")
    assert prompt_key("3.5") != prompt_key("35")
    assert prompt_key("7+1-3+2=") == "7+1-3+2="
    assert prompt_key("求值") == "求值"
    assert prompt_key("?!?") != prompt_key("?")
    assert prompt_key("??") == "??"


# ---- bad rows


def test_rows_without_a_gold_answer_are_left_out_and_named():
    golds = ["1", None, "", float("nan"), "5"]
    loaded = load([{"prompt": f"{i}?", "answer": gold} for i, gold in enumerate(golds)])
    assert [p.id for p in loaded.prompts] == ["rows/1", "rows/5"]
    assert loaded.notes == (
        "rows: 3 rows left out, gold answer missing or does not verify: rows 2, 3, 4 "
        "(row 2: the gold answer is missing)",
    )


def test_a_gold_answer_that_does_not_verify_is_left_out_with_the_verifiers_reason():
    rows = [{"prompt": "A?", "answer": "4"}, {"prompt": "B?", "answer": "\\frac{1}{"}]
    loaded = load(rows)
    assert [p.id for p in loaded.prompts] == ["rows/1"]
    assert "rows: 1 row left out" in loaded.notes[0]
    assert "row 2: the gold answer '\\\\frac{1}{' does not verify against itself" in loaded.notes[0]


def test_bad_rows_can_be_refused():
    rows = [{"prompt": "A?", "answer": "4"}, {"prompt": "B?", "answer": None}, {"prompt": " ", "answer": "1"}]
    words = (
        "2 rows cannot be used: rows 2, 3",
        "row 2: the gold answer is missing",
        "row 3: prompt is empty",
        "bad_rows",
    )
    fails(DataError, rows, *words, bad_rows="refuse")


def test_many_bad_rows_are_named_up_to_twenty():
    rows = [{"prompt": f"{i}?", "answer": "1" if i < 5 else None} for i in range(40)]
    assert "rows 6, 7, 8" in load(rows).notes[0]
    assert "25 and 15 more" in load(rows).notes[0]


def test_no_gold_is_needed_for_a_reward_function_or_where_not_required():
    rows = [{"prompt": "A?"}, {"prompt": "B?", "answer": "4"}]
    for loaded in (load(rows, reward="my.module:function"), load(rows, require_gold=False)):
        assert [p.gold for p in loaded.prompts] == [None, "4"]
        assert loaded.notes == ()


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "prompt is missing"),
        ("  ", "prompt is empty"),
        ([], "prompt is empty"),
        (5, "prompt is of type int"),
        ({"role": "user"}, "prompt is of type dict"),
        (["A?"], "chat message without role and content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content is not text"),
        ([{"role": "user", "content": "A?"}, {"role": "tool", "content": "4"}], "role 'tool', not 'user'"),
        ([{"role": "user", "content": " "}], "prompt is empty"),
    ],
)
def test_prompts_that_cannot_be_used_are_left_out_with_the_reason(prompt, reason):
    loaded = load([{"prompt": prompt, "answer": "4"}, {"prompt": "B?", "answer": "4"}])
    assert len(loaded.prompts) == 1
    assert "prompt or gold answer cannot be used: row 1" in loaded.notes[0]
    assert reason in loaded.notes[0]


def test_a_gold_answer_of_another_type_is_a_bad_row():
    loaded = load([{"prompt": "A?", "answer": b"4"}, {"prompt": "B?", "answer": "4"}])
    assert "row 1: the gold answer in column 'answer' is of type bytes, not text or a number: b'4'" in loaded.notes[0]


# ---- mistakes


def test_missing_columns_name_the_columns_present():
    row = {"question": "A?", "solution": "4"}
    fails(
        DataError, [row, row], "none of the 2 rows can be used", "no column 'prompt'",
        "Columns present: question, solution", "data.prompt_column is 'prompt'",
    )  # fmt: skip
    fails(DataError, [row], "no column 'answer', so the gold", "data.answer_column 'answer'", prompt_column="question")
    fails(DataError, [row], "no column 'a.b'", prompt_column="a.b")
    fails(DataError, [{"prompt": "A?"}], "no column 'question'", "Columns present: prompt", task="gsm8k")
    fails(DataError, [{"prompt": "A?"}], "no column 'problem'", "Columns present: prompt", task="dapo_math")
    fails(DataError, [{"question": "A?", "answer": "42"}], "gold answer is missing", task="gsm8k")


def test_no_rows_and_rows_that_are_no_dicts():
    fails(DataError, [], "the data holds no rows")
    fails(DataError, ["A?"], "row 1 is a str, not a dict")


def test_unknown_names_suggest_the_nearest():
    fails(ConfigError, [], "data.task 'gsm8' is not known. Did you mean 'gsm8k'", task="gsm8")
    fails(ConfigError, [{"prompt": "A?", "answer": "4"}], "'mth'", "Did you mean 'math'", verifier="mth")


def test_options_path_and_rows_that_exclude_one_another():
    rows = [{"prompt": "A?", "answer": "4"}]
    fails(ConfigError, rows, "data.options: task rows takes none", "prompts", options={"prompts": 5})
    fails(ConfigError, rows, "data.path is 'x.jsonl', but rows were given too", path="x.jsonl")
    with pytest.raises(ConfigError, match=r"data\.path is not set, and task rows has no data set of its own"):
        load_prompts(DataConfig(), seed=0)


# ---- demonstrations


def test_demonstrations_of_rows_come_from_either_column():
    rows = [
        {"prompt": "A?", "demonstration": "Because. 4"},
        {"prompt": "B?", "completion": "So 5"},
        {"prompt": "C?", "completion": [{"role": "assistant", "content": "So 6"}]},
        {"prompt": "D?", "completion": ""},
    ]
    found = demonstrations(DataConfig(), "full", 0, rows=rows)
    assert [p.demonstration for p in found] == ["Because. 4", "So 5", "So 6"]
    with pytest.raises(DataError, match="1 of 4 rows have no demonstration"):
        demonstrations(DataConfig(bad_rows="refuse"), "full", 0, rows=rows)
    with pytest.raises(DataError, match=r"1 of 1 rows .* Columns present beside the prompt: answer"):
        demonstrations(DataConfig(), "full", 0, rows=[{"prompt": "A?", "answer": "4"}])


def test_tasks_without_demonstrations_and_unknown_kinds_are_refused():
    with pytest.raises(DataError, match="task dapo_math has no demonstrations"):
        demonstrations(DataConfig(task="dapo_math"), "full", 0)
    with pytest.raises(ConfigError, match=r"'terse' is no kind of demonstration of task rows. Known: full"):
        demonstrations(DataConfig(), "terse", 0, rows=[])


@pytest.mark.parametrize(
    ("fields", "rows", "said"),
    [
        ({"task": "gsm9k"}, None, "evaluation.data.task 'gsm9k' is not known"),
        ({}, None, "Give --evaluation.data.path a file"),
        ({"path": "missing.jsonl"}, None, "evaluation.data.path missing.jsonl does not exist"),
        ({"limit": 0}, [], "evaluation.data.limit is 0"),
        ({"verifier": "mth"}, [], "evaluation.data.verifier is 'mth'. Did you mean 'math'?"),
        ({"options": {"a": 1}}, [], "evaluation.data.options: task rows takes none"),
        ({}, [{"question": "A?"}], "evaluation.data.prompt_column is 'prompt'"),
        ({"bad_rows": "refuse"}, [{"prompt": "A?", "answer": "1"}, {"prompt": "B"}], "set evaluation.data.bad_rows to"),
        ({"task": "chain_arithmetic", "split": "test"}, None, "evaluation.data.split is 'test'"),
        ({"task": "chain_arithmetic", "options": {"seed": -1}}, None, "evaluation.data.options.seed is -1"),
        ({"task": "chain_arithmetic", "path": "x"}, None, "evaluation.data.path is 'x'"),
    ],
)
def test_errors_name_the_section_that_the_config_came_from(fields, rows, said):
    with pytest.raises(SppoError) as error:
        load_prompts(DataConfig(**fields), seed=0, rows=rows, key="evaluation.data")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("gsm8k", {"question": "A?"}, "row 1: no column 'answer', so the gold answer is missing"),
        ("gsm8k", {"question": "A?", "answer": "42"}, "row 1: the gold answer is missing behind ####"),
        ("math500", {"problem": "A?"}, "row 1: no column 'answer', so the gold answer is missing"),
        ("math500", {"problem": "A?", "answer": None}, "row 1: the gold answer is missing. Columns"),
        ("rows", {"prompt": "A?"}, "row 1: no column 'answer', so the gold answer is missing"),
    ],
)
def test_an_answer_column_that_is_not_there_is_told_from_an_empty_one(task, row, said):
    with pytest.raises(DataError) as error:
        load_prompts(DataConfig(task=task), seed=0, rows=[row])
    assert said in str(error.value)
