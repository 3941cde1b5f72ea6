"""The 7B recipe on the real DAPO file, with a tiny random model in its place: the same code path, chat template too."""

from __future__ import annotations

import re

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sppo.commands.train import train
from sppo.config.recipes import load_recipe
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from tests.conftest import SHARED_DATA, tiny_qwen2

DAPO = SHARED_DATA / "dapo_math_17k.parquet"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, so that any text can be read, with the special tokens of a reasoning model's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|pad|>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    made.chat_template = TEMPLATE
    return made


@pytest.mark.skipif(not DAPO.exists(), reason="shared/data/dapo_math_17k.parquet is not here")
def test_the_7b_recipe_runs_on_the_real_dapo_file(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_qwen2(vocab_size=len(tokenizer), max_position_embeddings=16384, eos_token_id=tokenizer.eos_token_id)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    config = load_recipe(
        "r1_distill_7b_dapo",
        {
            "output": str(tmp_path / "run"),
            "model.path": str(tmp_path / "model"),
            "critic.path": None,
            "data.path": str(DAPO),
            "evaluation.data.path": str(SHARED_DATA / "math_500.parquet"),
            "evaluation.prompts": 8,
            "evaluation.final_samples_per_prompt": 1,
            "steps": 3,
            "prompts_per_step": 16,
            "optimizer.minibatch_size": 8,
            "critic.minibatch_size": 8,
            "sampling.max_response_tokens": 24,
            "device": "cpu",
            "engine.name": "hf",
        },
    )
    summary = train(config)
    assert summary["steps"] == 3
    assert summary["responses"] == 48
    assert summary["skipped_optimizer_steps"] == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2, 3]
    records = list(read_records(tmp_path / "run"))
    assert len({record["prompt_id"] for record in records}) == 48
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "last" / "policy")
    assert loaded.config.model_type == "qwen2"
    for record in records:
        rendered = tokenizer.decode(record["prompt_token_ids"])
        assert rendered.startswith("<|user|>")
        assert rendered.endswith("<|assistant|><think>\n")
        assert record["prompt"] in rendered
        assert re.fullmatch(r"-?\d+", record["gold"])
        assert record["verifier"] == "math"
        assert record["error"] is None
