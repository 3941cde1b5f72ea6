"""The walk over the prompts: permutations, exact resume, refusals, and the split into training and held-out."""

import json
from collections import Counter

import pytest

from sppo.data.prompts import hold_out
from sppo.data.stream import PromptStream
from sppo.errors import DataError, RunFolderError
from sppo.types import Prompt


def make(n, prefix="problem"):
    return [Prompt(id=str(i), content=f"{prefix} {i}", gold=str(i)) for i in range(n)]


def ids(prompts):
    return [prompt.id for prompt in prompts]


def test_each_epoch_holds_every_prompt_once_in_another_order():
    stream = PromptStream(make(10), seed=0)
    epochs = [ids(stream.take(10)) for _ in range(3)]
    assert all(sorted(epoch, key=int) == [str(i) for i in range(10)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_take_crosses_epochs_and_how_it_is_cut_does_not_matter():
    whole = ids(PromptStream(make(7), seed=4).take(35))
    stream = PromptStream(make(7), seed=4)
    assert [i for n in (3, 0, 16, 1, 15) for i in ids(stream.take(n))] == whole
    assert Counter(whole) == dict.fromkeys(map(str, range(7)), 5)


def test_the_order_depends_on_the_seed():
    assert ids(PromptStream(make(50), seed=0).take(50)) != ids(PromptStream(make(50), seed=1).take(50))


def test_the_order_is_pinned():
    # An order that changes between versions of this package would break every resumed run.
    assert ids(PromptStream(make(8), seed=0).take(16)) == list("0674253115072436")


def test_epoch_is_the_progress():
    stream = PromptStream(make(8), seed=0)
    seen = [stream.epoch]
    for n in (2, 6, 12):
        stream.take(n)
        seen.append(stream.epoch)
    assert seen == [0.0, 0.25, 1.0, 2.5]
    assert len(stream) == 8


@pytest.mark.parametrize("before", [0, 3, 8, 13, 16, 29])
def test_resuming_continues_exactly(before):
    uninterrupted = PromptStream(make(8), seed=7)
    uninterrupted.take(before)
    state = json.loads(json.dumps(uninterrupted.state_dict()))
    resumed = PromptStream(make(8), seed=7)
    resumed.take(5)
    resumed.load_state_dict(state)
    assert resumed.epoch == uninterrupted.epoch
    assert ids(resumed.take(30)) == ids(uninterrupted.take(30))
    assert resumed.state_dict() == uninterrupted.state_dict()


@pytest.mark.parametrize(
    "other",
    [
        PromptStream(make(7), seed=0),
        PromptStream(make(8)[::-1], seed=0),
        PromptStream(make(8, "task"), seed=0),
        PromptStream(make(8), seed=1),
        PromptStream([*make(7), Prompt(id="7", content="problem 7", gold="8")], seed=0),
        PromptStream([*make(7), Prompt(id="7", content="problem 7", gold="7", other_golds=("8",))], seed=0),
        PromptStream([*make(7), Prompt(id="7", content=({"role": "user", "content": "problem 7"},), gold="7")], seed=0),
    ],
    ids=["fewer", "other order", "other text", "other seed", "other gold", "more golds", "chat"],
)
def test_resuming_on_other_data_is_refused(other):
    with pytest.raises(RunFolderError, match="belongs to other prompts or another seed"):
        other.load_state_dict(PromptStream(make(8), seed=0).state_dict())


def test_a_broken_cursor_is_refused():
    stream = PromptStream(make(8), seed=0)
    state = stream.state_dict()
    with pytest.raises(RunFolderError, match="lacks offset"):
        stream.load_state_dict({key: value for key, value in state.items() if key != "offset"})
    for offset in (8, -1, "3"):
        with pytest.raises(RunFolderError, match="offset must be below 8"):
            stream.load_state_dict({**state, "offset": offset})


def test_no_prompts_are_refused():
    with pytest.raises(DataError, match="no prompts to train on"):
        PromptStream([], seed=0)


def test_hold_out_splits_without_overlap_and_keeps_the_order():
    prompts = make(20)
    train, held_out = hold_out(prompts, 6, seed=0)
    assert len(train) == 14
    assert len(held_out) == 6
    assert sorted(ids(train) + ids(held_out), key=int) == ids(prompts)
    assert ids(train) == sorted(ids(train), key=int)
    assert ids(held_out) == sorted(ids(held_out), key=int)
    assert (train, held_out) == hold_out(prompts, 6, seed=0)
    assert ids(held_out) != ids(hold_out(prompts, 6, seed=1)[1])


def test_copies_of_a_problem_never_stand_on_both_sides():
    texts = ["Find $x + 1$.", "find x+1", "Find x - 1.", "Compute  y.", "Compute $y$"]
    prompts = [Prompt(id=str(i), content=text) for i, text in enumerate(texts)]
    problem = {"0": "plus", "1": "plus", "2": "minus", "3": "y", "4": "y"}
    for seed in range(10):
        train, held_out = hold_out(prompts, 2, seed)
        assert {problem[i] for i in ids(train)}.isdisjoint(problem[i] for i in ids(held_out))
        assert len({problem[i] for i in ids(held_out)}) == len(held_out) == 2
        # Signs carry the meaning, so that x + 1 and x - 1 are two problems; the first copy is the one kept.
        assert set(ids(held_out)) <= {"0", "2", "3"}


def test_hold_out_of_nothing_and_of_everything():
    assert hold_out(make(3), 0, seed=0) == (make(3), [])
    with pytest.raises(DataError, match=r"3 held-out prompts would leave none .* there are 3 distinct prompts"):
        hold_out([*make(3), *make(3)], 3, seed=0)
