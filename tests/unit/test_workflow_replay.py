"""Workflows that began under earlier versions go on under this one."""

from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from evervec import __version__
from evervec.messages import ITEM_CHANGED_SIGNAL, ITEM_WORKFLOW, ItemChange, ItemWorkflowInput
from evervec.temporal import data_converter
from workflows import all_workflows

HISTORIES = sorted((Path(__file__).parents[1] / "histories").glob("*/*.json"))


def load(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(f"item-embedding/lab/items/{path.stem}", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_histories_can_be_replayed(path: Path) -> None:
    replayer = Replayer(workflows=all_workflows(), data_converter=data_converter)
    await replayer.replay_workflow(load(path))


def test_this_version_has_histories() -> None:
    assert any(path.parent.name == __version__ for path in HISTORIES), "python -m tests.histories.record"


@workflow.defn(name=ITEM_WORKFLOW)
class Forgetful:
    """Has the name of the item's workflow, and does something else."""

    @workflow.run
    async def run(self, _start: ItemWorkflowInput) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.signal(name=ITEM_CHANGED_SIGNAL)
    def item_changed(self, change: ItemChange) -> None:
        pass


async def test_a_replay_notices_a_workflow_that_changed() -> None:
    replayer = Replayer(
        workflows=[Forgetful], data_converter=data_converter, workflow_runner=UnsandboxedWorkflowRunner()
    )
    [edits] = [path for path in HISTORIES if path.stem == "edits" and path.parent.name == __version__]
    with pytest.raises(workflow.NondeterminismError):
        await replayer.replay_workflow(load(edits))
