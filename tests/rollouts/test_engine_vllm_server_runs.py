"""Runs with engine "vllm-server", against servers without vLLM; with the real one: `test_engine_vllm_servers.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sppo.commands.evaluate import evaluate_run
from sppo.commands.plan import plan
from sppo.commands.train import train
from sppo.config import Config
from sppo.config.evaluation import evaluation_config
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, TrainingError
from sppo.models.loading import load_policy, load_tokenizer
from sppo.runs.folder import read_metrics
from sppo.training.given import Given
from tests.conftest import tiny_config
from tests.ranks.starting import starter
from tests.ranks.test_equal import SMALL, responses
from tests.rollouts.serving import Gone, Served, of_rows, serving
from tests.training.test_loop import likes_threes

GIVEN = Given(reward_function=likes_threes)


def with_servers(config: Config, servers: list[Served], **options: Any) -> Config:
    own = {"addresses": [server.address for server in servers], **options}
    return replace(config, engine=replace(config.engine, name="vllm-server", options=own))


@contextmanager
def serving_model_of(config: Config) -> Iterator[list[Served]]:
    """Servers with the run's architecture and weights of their own."""
    tokenizer = load_tokenizer(config.model, ALPHABET)
    plain = replace(config.model, lora=replace(config.model.lora, rank=0))

    def make():
        torch.manual_seed(5)
        return load_policy(plain, tokenizer, torch.device("cpu")).eval()

    with serving(make) as servers:
        yield servers


def dying(server: Served, rows: int) -> None:
    """It answers so many more rows and none after them."""
    last = server.rows + rows

    def dies(answer: Any) -> Any:
        if server.rows > last:
            raise Gone
        return answer

    server.fault = of_rows(dies)


@pytest.mark.filterwarnings("error:The vLLM at")
@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_over_servers_is_the_run_in_this_process(tmp_path, rank):
    config = tiny_config(tmp_path / "hf", algorithm__old_logprobs="trainer", steps=2, model__lora__rank=rank)
    train(config, GIVEN)
    with serving_model_of(config) as servers:
        served = with_servers(replace(config, output=str(tmp_path / "served")), servers)
        train(served, GIVEN)
        assert all(not server.paused for server in servers)
        # At the start and after each of two steps.
        assert [len(server.labels) for server in servers] == [3, 3]
        evaluated, _ = evaluation_config(str(tmp_path / "hf"), None, ())
        here = evaluate_run(str(tmp_path / "hf"), evaluated, reward_function=likes_threes)
        there = evaluate_run(str(tmp_path / "hf"), with_servers(evaluated, servers), reward_function=likes_threes)
        assert here == there
    assert responses(tmp_path / "served") == responses(tmp_path / "hf")
    gaps = [line["sampler/logprob_gap_max"] for line in read_metrics(tmp_path / "served")[1:]]
    assert len(gaps) == 2
    assert max(gaps) < 1e-5


def test_a_run_whose_servers_have_all_died_goes_on_with_others(tmp_path):
    config = tiny_config(tmp_path / "whole")
    train(config, GIVEN)
    stopped = replace(config, output=str(tmp_path / "stopped"))
    with serving_model_of(config) as servers:
        for server in servers:
            dying(server, 35)
        with pytest.warns(UserWarning, match="is left out"), pytest.raises(TrainingError, match="has no server left"):
            train(with_servers(stopped, servers), GIVEN)
        assert 0 < len(read_metrics(tmp_path / "stopped")) < 4
    with serving_model_of(config) as servers:
        dying(servers[0], 10)
        with pytest.warns(UserWarning, match="is left out"):
            train(with_servers(stopped, servers), GIVEN, resume=True)
    assert responses(tmp_path / "stopped") == responses(tmp_path / "whole")


def test_ranks_send_their_own_rows_and_hand_over_weights_once(tmp_path):
    common = {**SMALL, "prompts_per_step": 7, "optimizer__minibatch_size": 7, "critic__minibatch_size": 7}
    said = {}
    with starter(tmp_path) as ranks:
        for count, name in ((1, "hf"), (1, "served"), (2, "served")):
            output = tmp_path / f"{name}{count}"
            output.mkdir()
            options = dict(common)
            with serving_model_of(tiny_config(output, **common)) as servers:
                if name == "served":
                    own = {"addresses": [server.address for server in servers], "folder": str(output / "weights")}
                    options |= {"engine__name": "vllm-server", "engine__options": own}
                    dying(servers[1], 12)
                (output / "cases.json").write_text(json.dumps({"case": options}))
                for ended in ranks.run(count, "tests.ranks.worker", [str(output / "cases.json"), str(output)]):
                    assert ended.code == 0, ended.said[-3000:]
                said[name, count] = [len(server.labels) for server in servers]
                if name == "served":
                    assert len(set(servers[0].labels)) == len(servers[0].labels) == 3
                    assert list((output / "weights").iterdir()) == []
        alone = responses(tmp_path / "hf1" / "case")
        assert responses(tmp_path / "served1" / "case") == alone
        assert responses(tmp_path / "served2" / "case") == alone


def test_a_plan_needs_no_servers_but_addresses_that_can_be(tmp_path):
    config = tiny_config(tmp_path / "run", engine__name="vllm-server", engine__options={"addresses": ["nowhere:1"]})
    rows = dict(plan(config).rows)
    assert "cache" not in rows["memory: sampling"]
    with pytest.raises(ConfigError, match=r"engine.options.addresses is empty"):
        plan(replace(config, engine=replace(config.engine, options={})))
    with pytest.raises(ConfigError, match=r"engine.options.addresses: http://nowhere:1: ConnectError"):
        train(config)
    assert not Path(config.output).exists() or not read_metrics(Path(config.output))
