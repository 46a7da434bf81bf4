"""The task table: widths and order that checkpoints and reference vectors rely on."""

import pytest

from blades_dist.tasks import TAGS, task_set, vocabulary


def test_the_papers_layout() -> None:
    tasks = task_set()
    assert len(tasks) == 11 and tasks.width == len(tasks.prompts) == 50
    assert [len(task.classes) for task in tasks.tasks] == [3, 3, 3, 3, 10, 8, 7, 2, 6, 2, 3]
    assert tasks.names[tasks.proxy] == "face_coarse"
    assert tasks.columns["make"] == slice(12, 22)
    assert tasks.prompts[49] == "a photo of a face with a manipulated nose region"


def test_columns_partition_the_logits() -> None:
    for tasks in (task_set(), task_set(flash=True)):
        covered = [i for part in tasks.columns.values() for i in range(part.start, part.stop)]
        assert covered == list(range(tasks.width))
        for i, task in enumerate(tasks.task_of_column):
            part = tasks.columns[tasks.names[task]]
            assert part.start <= i < part.stop


def test_flash_is_one_row() -> None:
    assert task_set(flash=True).width == 52 and "flash" in TAGS
    assert vocabulary("flash") == ("off", "on")
    with pytest.raises(KeyError, match="unknown EXIF tag 'colour'"):
        vocabulary("colour")
