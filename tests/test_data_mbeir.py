"""Reading M-BEIR's format: a small directory written by hand, and what must be refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from retrv_r1.data import mbeir

HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _candidate(did: str, text: str | None, image: str | None) -> dict:
    modality = ",".join(m for m, x in (("image", image), ("text", text)) if x)
    return {"txt": text, "img_path": image, "modality": modality, "did": did, "src_content": None}


def _query(**changed) -> dict:
    return {
        "qid": "8:12",
        "query_txt": "is shown from above and has a bow",
        "query_img_path": "mbeir_images/cirr_images/train/34/a.jpg",
        "query_modality": "image,text",
        "query_src_content": None,
        "pos_cand_list": ["8:2"],
        "neg_cand_list": ["8:1"],
        "task_id": 7,
    } | changed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CIRR-like and MSCOCO-like cells: pools with and without a split in their name."""
    images = [_candidate(f"8:{i}", None, f"mbeir_images/cirr_images/{i}.jpg") for i in (1, 2, 3)]
    texts = [_candidate(f"9:{i}", f"a caption {i}", None) for i in (1, 2)]
    caption = _query(
        qid="9:7",
        query_txt="",
        query_modality="image",
        pos_cand_list=["9:1", "9:2"],
        neg_cand_list=[],
        task_id=3,
    )
    _jsonl(tmp_path / "query/test/mbeir_cirr_task7_test.jsonl", [_query()])
    _jsonl(tmp_path / "query/test/mbeir_mscoco_task3_test.jsonl", [caption])
    pools = tmp_path / "cand_pool"
    _jsonl(pools / "local/mbeir_cirr_task7_cand_pool.jsonl", images)
    _jsonl(pools / "local/mbeir_mscoco_task3_test_cand_pool.jsonl", texts)
    _jsonl(pools / "global/mbeir_union_test_cand_pool.jsonl", images + texts)
    table = tmp_path / "instructions/query_instructions.tsv"
    table.parent.mkdir()
    table.write_text(
        HEADER + "image,text\timage\tCIRR\t8\tFind the change.\tChange it.\n", encoding="utf-8"
    )
    qrels = tmp_path / "qrels/test/mbeir_mscoco_task3_test_qrels.txt"
    qrels.parent.mkdir(parents=True)
    qrels.write_text("9:7 0 9:2 1 3\n9:7 0 9:1 0 3\n", encoding="utf-8")
    return tmp_path


def _edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def test_a_cell_reads_as_it_was_written(root: Path) -> None:
    task = mbeir.load(root, "cirr_task7", "test")
    (query,) = task.queries
    assert (query.qid, query.modality, query.task_id) == ("8:12", "image,text", 7)
    assert query.positives == ("8:2",)
    assert query.negatives == ("8:1",)
    assert [c.did for c in task.pool] == ["8:1", "8:2", "8:3"]
    item = task.item(query)
    assert item.image == root / "mbeir_images/cirr_images/train/34/a.jpg"
    assert (item.text, item.id) == (query.text, "8:12")
    answer = task.item(task.candidate("8:2"))
    assert answer.text is None
    assert answer.image == root / "mbeir_images/cirr_images/2.jpg"


def test_pools_are_local_or_global(root: Path) -> None:
    assert len(mbeir.load(root, "mscoco_task3", "test").pool) == 2
    assert len(mbeir.load(root, "mscoco_task3", "test", "global").pool) == 5


def test_an_empty_text_is_no_text(root: Path) -> None:
    (query,) = mbeir.load(root, "mscoco_task3", "test").queries
    assert query.text is None


def test_instructions_by_index_and_drawn(root: Path) -> None:
    (query,) = mbeir.load(root, "cirr_task7", "test").queries
    assert [mbeir.instruction(query, i) for i in range(3)] == [
        "Find the change.",
        "Change it.",
        "Find the change.",
    ]
    assert mbeir.instruction(query, random.Random(0)) in query.instructions
    (other,) = mbeir.load(root, "mscoco_task3", "test").queries
    with pytest.raises(mbeir.MBEIRError, match="dataset id 9"):
        mbeir.instruction(other)


def test_cells_lists_what_is_there(root: Path) -> None:
    found = {(c.dataset, c.split): sorted(c.pools) for c in mbeir.cells(root)}
    assert found == {
        ("cirr_task7", "test"): ["global", "local"],
        ("mscoco_task3", "test"): ["global", "local"],
    }


def test_qrels_stand_in_for_missing_positives(root: Path) -> None:
    path = root / "query/test/mbeir_mscoco_task3_test.jsonl"
    _edit(path, lambda text: text.replace('["9:1", "9:2"]', "[]"))
    (query,) = mbeir.load(root, "mscoco_task3", "test").queries
    assert query.positives == ("9:2",)


def test_a_family_has_a_global_pool_of_its_own(root: Path) -> None:
    pool = root / "cand_pool/global/mbeir_union_task7_test_cand_pool.jsonl"
    _jsonl(pool, [_candidate("8:2", None, "b.jpg"), _candidate("8:1", None, "c.jpg")])
    assert len(mbeir.load(root, "cirr_task7", "test", "global").pool) == 2
    assert len(mbeir.load(root, "mscoco_task3", "test", "global").pool) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task_id": 5}, "'task_id' must be one of"),
        ({"qid": "12"}, "'qid' must look like"),
        ({"qid": "8:012"}, "'qid' must look like"),
        ({"query_modality": "video"}, "'query_modality' must be one of"),
        ({"query_img_path": None}, "there is no image"),
        ({"query_img_path": "../secret.png"}, "must stay inside"),
        ({"query_img_path": "/etc/passwd"}, "must stay inside"),
        ({"query_txt": 3}, "must be a string or null"),
        ({"pos_cand_list": "8:2"}, "must be a list of ids"),
        ({"pos_cand_list": []}, "has no positive"),
        ({"pos_cand_list": ["8:99"]}, "names 8:99, which is not in"),
        ({"neg_cand_list": ["9:1"]}, "names 9:1, which is not in"),
    ],
)
def test_a_bad_query_is_refused_with_file_and_line(root: Path, changed: dict, message: str) -> None:
    path = root / "query/test/mbeir_cirr_task7_test.jsonl"
    _jsonl(path, [_query(), _query(**({"qid": "8:13"} | changed))])
    with pytest.raises(mbeir.MBEIRError, match=message) as caught:
        mbeir.load(root, "cirr_task7", "test")
    assert "mbeir_cirr_task7_test.jsonl:2" in str(caught.value)


def test_candidates_of_other_pools_are_taken_for_evaluation(root: Path) -> None:
    """As OVEN, InfoSeek and WebQA list them; a query without any positive stays, as a miss."""
    path = root / "query/test/mbeir_cirr_task7_test.jsonl"
    foreign = _query(pos_cand_list=["8:2", "9:1"], neg_cand_list=["8:1", "9:2"])
    _jsonl(path, [foreign, _query(qid="8:13", pos_cand_list=["9:1"])])
    with pytest.raises(mbeir.MBEIRError, match=r"test.jsonl:1: query 8:12 names 9:1, which is not"):
        mbeir.load(root, "cirr_task7", "test")
    first, second = mbeir.load(root, "cirr_task7", "test", strict=False).queries
    assert (first.positives, first.negatives) == (("8:2", "9:1"), ("8:1",))
    assert second.positives == ("9:1",)


def test_fields_may_be_absent_where_nothing_needs_them(root: Path) -> None:
    """As in WebQA's text candidates, which have no `img_path`."""
    pool = root / "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"
    query = root / "query/test/mbeir_mscoco_task3_test.jsonl"
    whole = mbeir.load(root, "cirr_task7", "test").pool[:]
    _edit(pool, lambda text: text.replace('"txt": null, ', ""))
    _edit(query, lambda text: text.replace('"query_txt": "", ', ""))
    assert mbeir.load(root, "cirr_task7", "test").pool[:] == whole
    assert mbeir.load(root, "mscoco_task3", "test").queries[0].text is None
    _edit(pool, lambda text: text.replace('"img_path": "mbeir_images/cirr_images/2.jpg", ', ""))
    with pytest.raises(mbeir.MBEIRError, match=r"pool.jsonl:2: .* but there is no image"):
        mbeir.load(root, "cirr_task7", "test")


def test_the_qrels_decide_what_is_relevant(root: Path) -> None:
    (query,) = mbeir.load(root, "mscoco_task3", "test").queries
    assert (query.positives, query.disputed) == (("9:2",), True)
    (root / "qrels/test/mbeir_mscoco_task3_test_qrels.txt").unlink()
    (query,) = mbeir.load(root, "mscoco_task3", "test").queries
    assert (query.positives, query.disputed) == (("9:1", "9:2"), False)


def test_a_qid_twice_is_refused_with_both_lines(root: Path) -> None:
    path = root / "query/test/mbeir_cirr_task7_test.jsonl"
    _jsonl(path, [_query(), _query(qid="8:13"), _query()])
    message = r"test.jsonl:3: the qid 8:12 is that of \S*test.jsonl:1"
    with pytest.raises(mbeir.MBEIRError, match=message):
        mbeir.load(root, "cirr_task7", "test", strict=False)


def test_a_truncated_file_is_said_to_be_cut_off(root: Path) -> None:
    pool = root / "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"
    _edit(pool, lambda text: text[:-20])
    with pytest.raises(mbeir.MBEIRError, match=r"pool.jsonl:3: .*cut off"):
        mbeir.load(root, "cirr_task7", "test")


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda text: b"\xff\xfe" + text.encode("utf-16-le"), "jsonl:1: the file is UTF-16"),
        (lambda text: text.encode("utf-16-be"), "jsonl:1: not JSON"),
        (lambda text: text.replace("3.jpg", "é.jpg").encode("latin-1"), "jsonl:3: byte .*0xe9"),
    ],
)
def test_other_encodings_are_refused_with_file_and_line(root: Path, encode, message) -> None:
    pool = root / "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"
    pool.write_bytes(encode(pool.read_text(encoding="utf-8")))
    with pytest.raises(mbeir.MBEIRError, match=message):
        mbeir.load(root, "cirr_task7", "test")


def test_marks_and_line_ends_of_other_systems_are_read(root: Path) -> None:
    task = mbeir.load(root, "cirr_task7", "test")
    whole = (task.queries, task.pool[:])
    for path in (*root.rglob("*.jsonl"), *root.rglob("*.tsv"), *root.rglob("*.txt")):
        text = path.read_text(encoding="utf-8").replace("\n", "\r\n\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    marked = mbeir.load(root, "cirr_task7", "test")
    assert (marked.queries, marked.pool[:]) == whole
    assert marked.candidate("8:1") == whole[1][0]


def test_a_did_twice_is_refused_with_both_lines(root: Path) -> None:
    pool = root / "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"
    _edit(pool, lambda text: text + text.splitlines()[1] + "\n")
    with pytest.raises(mbeir.MBEIRError, match=r"jsonl:4: the did 8:2 is that of line 2; 1 dids"):
        mbeir.load(root, "cirr_task7", "test")


def test_a_pool_stays_in_its_file(root: Path) -> None:
    path = root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    pool = mbeir.CandidatePool(path)
    assert [candidate.did for candidate in pool] == ["8:1", "8:2", "8:3", "9:1", "9:2"]
    assert pool[-1].text == "a caption 2"
    assert pool.row("9:1") == 3
    assert "8:2" in pool and "8:4" not in pool and "no id" not in pool
    others = ("8:02", "8: 2", "8:+2", f"7:{2**40 + 2}")  # the same number in other words
    assert not any(did in pool for did in others)
    found = pool.rows(["9:2", "8:4", "8:1", "9:1", "no id", *others])
    assert found.tolist() == [4, -1, 0, 3, *[-1] * 5] and len(pool.rows([])) == 0
    with pytest.raises(KeyError):
        pool.row("8:4")
    less = pool.without([0, 3])
    assert [candidate.did for candidate in less] == ["8:2", "8:3", "9:2"]
    assert (less.row("9:2"), less.line(2), "9:1" in less) == (2, 5, False)
    path.write_bytes(b"\n")
    with pytest.raises(mbeir.MBEIRError, match="has no candidates"):
        mbeir.CandidatePool(path)


def test_missing_files_say_what_is_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(mbeir.MBEIRError, match=r"holds cirr_task7 \(test\)"):
        mbeir.load(root, "fashioniq_task7", "test")
    (root / "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl").unlink()
    with pytest.raises(mbeir.MBEIRError, match="no candidate pool"):
        mbeir.load(root, "cirr_task7", "test")
    with pytest.raises(mbeir.MBEIRError, match="no `query` folder"):
        mbeir.cells(tmp_path / "nowhere")
    with pytest.raises(mbeir.MBEIRError, match="'local' or 'global'"):
        mbeir.load(root, "cirr_task7", "test", "regional")


def test_bad_qrels_and_instructions_are_refused(root: Path) -> None:
    qrels = root / "qrels/test/mbeir_cirr_task7_test_qrels.txt"
    qrels.write_text("8:12 8:2\n", encoding="utf-8")
    with pytest.raises(mbeir.MBEIRError, match=r"qrels.txt:1: .*is needed"):
        mbeir.load(root, "cirr_task7", "test")
    qrels.write_text("8:12 0 doc2 1 7\n", encoding="utf-8")
    with pytest.raises(mbeir.MBEIRError, match=r"qrels.txt:1: ids must look like"):
        mbeir.load(root, "cirr_task7", "test")
    qrels.unlink()
    _edit(root / "instructions/query_instructions.tsv", lambda text: text + "text\timage\n")
    with pytest.raises(mbeir.MBEIRError, match=r"tsv:3: .*columns"):
        mbeir.load(root, "cirr_task7", "test")
