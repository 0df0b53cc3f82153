"""The corpus of the small models: licences, filters, duplicates, splits, and that answers in it are true."""

from __future__ import annotations

import ast
import csv
import zipfile
from dataclasses import replace
from email import message_from_string
from pathlib import Path

import pytest

from tools.train.corpus import dedupe, fetch, files, heldout, rows, stories
from tools.train.corpus.forms import PAGE, docsum_prompt, docsum_text, pages
from tools.train.corpus.functions import fingerprint, first_sentence, functions, summary
from tools.train.corpus.harvest import Harvest, harvest, parsed
from tools.train.corpus.sources import ALLOWED, Source, SourceError, check_licence, read_list, refuse_unless_allowed

MIT_TEXT = "Permission is hereby granted, free of charge, to any person\nobtaining a copy of this software"
GPL_TEXT = "GNU GENERAL PUBLIC LICENSE Version 3"
SOURCE = Source("made-up", "1.0", "MIT", "0" * 64, "wheel", False)


# --- the list and its licences


def test_the_list_is_pinned_permissive_and_split() -> None:
    listed = read_list()
    assert len(listed) >= 50
    assert sum(source.heldout for source in listed) >= 5
    assert all(len(source.sha256) == 64 and source.version[0].isdigit() for source in listed)


@pytest.mark.parametrize(
    "expression", ["GPL-3.0-only", "MIT AND GPL-3.0-only", "LGPL-2.1 OR MPL-2.0", "BSD-3-Clause AND Zlib", ""]
)
def test_other_licences_are_refused(expression: str) -> None:
    with pytest.raises(SourceError, match="may not go into the training data"):
        refuse_unless_allowed(expression, where="here")
    with pytest.raises(SourceError, match=r"sources.toml, made-up"):
        replace(SOURCE, license=expression)


@pytest.mark.parametrize(
    "expression", [*sorted(ALLOWED), "MIT OR GPL-3.0-only", "Apache-2.0 AND MIT", "(MIT OR Apache-2.0)"]
)
def test_permissive_licences_pass(expression: str) -> None:
    refuse_unless_allowed(expression, where="here")


@pytest.mark.parametrize(
    "metadata",
    [
        "License-Expression: MIT\n",
        "License: MIT\n",
        "Classifier: License :: OSI Approved :: MIT License\nLicense: see the file\n",
        "Classifier: License :: OSI Approved\nLicense: MIT License\n",
    ],
)
def test_what_the_metadata_says_is_evidence(metadata: str) -> None:
    evidence = check_licence(SOURCE, message_from_string(metadata), {"LICENSE": MIT_TEXT})
    assert evidence["license"] == "MIT"
    assert evidence["text"] == "LICENSE"


@pytest.mark.parametrize(
    ("metadata", "text", "says"),
    [
        ("License-Expression: MIT\n", GPL_TEXT, "no text of MIT"),
        ("License-Expression: Apache-2.0\n", MIT_TEXT, "the archive says 'Apache-2.0'"),
        ("License-Expression: GPL-3.0-only\n", MIT_TEXT, "may not go into"),
        (
            "License: MIT\nClassifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)\n",
            MIT_TEXT,
            "gplv3",
        ),
        (
            "Classifier: License :: OSI Approved :: MIT License\n"
            "Classifier: License :: OSI Approved :: GNU Affero General Public License v3\n",
            MIT_TEXT,
            "affero",
        ),
        ("Name: made-up\n", MIT_TEXT, "the archive says 'nothing'"),
    ],
)
def test_an_archive_that_says_otherwise_is_refused(metadata: str, text: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        check_licence(SOURCE, message_from_string(metadata), {"LICENSE": text})


def test_a_held_out_name_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sources.toml"
    path.write_text('heldout = ["absent"]\n[project.a]\nversion="1"\nlicense="MIT"\narchive="wheel"\nsha256="00"\n')
    with pytest.raises(SourceError, match="absent"):
        read_list(path)


# --- archives


def _wheel(path: Path, members: dict[str, str], licence: str = "MIT", text: str = MIT_TEXT) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("a-1.dist-info/METADATA", f"License-Expression: {licence}\n")
        wheel.writestr("a-1.dist-info/licenses/LICENSE", text)
        for name, content in members.items():
            wheel.writestr(name, content)
    return path


def test_a_project_inside_another_does_not_speak_for_its_licence(tmp_path: Path) -> None:
    path = _wheel(tmp_path / "a.whl", {"a/_vendor/b-1.dist-info/METADATA": "License-Expression: GPL-3.0-only\n"})
    metadata, _ = fetch.metadata_of(path)
    assert metadata["License-Expression"] == "MIT"


def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "made-up-1.0"
    folder.mkdir()
    (folder / "a.whl").write_bytes(b"not what was pinned")
    with pytest.raises(SourceError, match=r"sources.toml pins 0000"):
        fetch.fetch((SOURCE,), tmp_path)


# --- files

BODY = "\n".join(f"def made_{i}(value):\n    return value + made_{i - 1}(value)\n" for i in range(2, 9))


def test_a_project_is_harvested_without_tests_copies_and_tables(tmp_path: Path) -> None:
    table = "NUMBERS = [\n" + "    1234, 5678, 9012,\n" * 100 + "]\n"
    members = {
        "a/good.py": "# Copyright 2020 Somebody\n# Licensed under the MIT License\n\n" + BODY,
        "a/tests/test_good.py": BODY,
        "a/_vendor/other.py": BODY,
        "a/table.py": table,
        "a/written.py": "# Generated by a program. DO NOT EDIT.\n" + BODY,
        "a/broken.py": BODY + "def (:\n",
        "a/wide.py": "x = '" + "y" * 600 + "'\n" + BODY,
        "a/model_pb2.py": BODY,
        "a/names.py": "".join(f"NAME_{letter} = '{letter}'\n" for letter in "abcdefghijklmnopqrstuvwxyz"),
    }
    found = harvest(SOURCE, _wheel(tmp_path / "a.whl", members))
    assert [file.path for file in found.code] == ["a/good.py"]
    assert found.code[0].text == BODY
    assert found.evidence["metadata"] == "MIT"


def test_a_refused_licence_stops_the_harvest(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"GPL-3\.0"):
        harvest(SOURCE, _wheel(tmp_path / "a.whl", {"a/good.py": BODY}, licence="GPL-3.0-only"))


def test_text_is_normalised() -> None:
    assert files.decoded(b"\xef\xbb\xbfif x:\r\n\treturn 1  \r\n\f") == "if x:\n        return 1\n"
    assert files.decoded("café".encode("latin-1")) is None
    assert files.decoded(b"a\x00b") is None


def test_only_a_licence_comment_is_cut_from_the_top() -> None:
    assert files.without_licence_header("# About this module\nx = 1\n") == "# About this module\nx = 1\n"
    assert files.without_licence_header("# SPDX-License-Identifier: MIT\n\nx = 1\n") == "x = 1\n"


# --- functions

FORMS = {
    "plain": 'def f(a):\n    """Say a word to it."""\n    b = a\n    return b\n',
    "async": 'async def f(a):\n    """Say a word to it."""\n\n    b = await a\n    return b\n',
    "decorated": '@two(3)\ndef f(a):\n    """Say a word to it.\n\n    Then more.\n    """\n    # why\n    return a\n',
    "method": 'class C:\n    @property\n    def f(self):\n        """Say a word to it."""\n        return self.x\n',
    "behind a semicolon": 'def f(a):\n    """Say a word to it."""; b = a\n    return b\n',
    "with a comment": 'def f(a):\n    "Say a word to it."  # aloud\n    b = a\n    return b\n',
    "not ascii": 'def f(\n    a,\n    b="öö"): """Say a word to it."""; c = "ö"; return c\n',
    "header of lines": 'def f(\n    a,\n    b=1,\n):\n    """Say a word to it."""\n    return a\n',
    "in a branch": 'if True:\n    def f(a):\n        """Say a word to it."""\n        b = a\n        return b\n',
}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_only_the_docstring_is_taken_out(form: str) -> None:
    text = FORMS[form]
    tree = ast.parse(text)
    [found] = functions(text, tree)
    node = next(item for item in ast.walk(tree) if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
    del node.body[0]
    assert ast.dump(ast.parse(found.code).body[0]) == ast.dump(node)
    assert "word" not in found.code and "wörd" not in found.code
    assert found.code.count("#") == text.count("#")
    assert found.code == found.code.strip("\n")
    assert not any(line.endswith(" ") for line in found.code.split("\n"))


@pytest.mark.parametrize(
    "text",
    [
        'def f(a): "Say a word to it."\n',
        'def f(a):\n    """Only this."""\n',
        "def f(a):\n    return a\n",
        'def f(a):\n    """Too short."""\n    return a\n',
        'if 1:\n  def f(a):\n    """Say a word to it."""\n    b = """\n    left\n"""\n    return b\n',
        'def f(a):\n    """Too long."""\n' + "    a += 1\n" * 61,
    ],
)
def test_what_is_no_documented_function_gives_nothing(text: str) -> None:
    assert list(functions(text, ast.parse(text))) == []


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the sum of two numbers.\n\nMore.", "Return the sum of two numbers."),
        ("Return the sum, e.g. of numbers. Then stop.", "Return the sum, e.g. of numbers."),
        ("\n    Open the file and\n    read from it\n    ", "Open the file and read from it."),
        ("Build a :class:`~a.b.Tree` of the ``nodes`` given.", "Build a a.b.Tree of the nodes given."),
        ("Use version 1.2 of the protocol", "Use version 1.2 of the protocol."),
        ("Deprecated: use the other one of the two.", None),
        ("TODO write the text of this.", None),
        ("Too short.", None),
        ("See the manual of the project for more.", None),
        ("Take the following of the options:", None),
        ("return the sum of two numbers", "Return the sum of two numbers."),
        ("_handler makes the sum of two numbers.", None),
        ("Возвращает сумму двух чисел.", None),
        ("Compute x_1 + y_2 - z_3 * w_4 / 5 of it", None),
    ],
)
def test_summaries_are_sentences(docstring: str, expected: str | None) -> None:
    assert summary(docstring) == expected


def test_a_sentence_may_be_all_there_is() -> None:
    assert first_sentence("No stop at all") == "No stop at all"


# --- duplicates and split


def _project(name: str, members: dict[str, str], folder: Path, *, held: bool = False) -> Harvest:
    source = replace(SOURCE, name=name, heldout=held)
    return harvest(source, _wheel(folder / f"{name}.whl", members))


def _documented(name: str, said: str, step: int) -> str:
    return f'def {name}(value):\n    """{said}"""\n    value += {step}\n    value *= {step}\n    return value\n'


def test_copies_are_taken_out_across_projects(tmp_path: Path) -> None:
    first = _project("one", {"one/a.py": BODY}, tmp_path)
    copy = _project("two", {"two/b.py": BODY.replace("    ", "  ").replace("\n\n", "\n# other layout\n\n")}, tmp_path)
    other = _project("three", {"three/c.py": BODY.replace("value", "number")}, tmp_path)
    dedupe.keep_new([first, copy, other], dedupe.Seen())
    assert [len(found.code) for found in (first, copy, other)] == [1, 0, 1]


def test_a_near_copy_is_taken_out(tmp_path: Path) -> None:
    long = "\n".join(_documented(f"f{i}", "Say a word to it.", i) for i in range(10))
    near = long.replace("value *= 9", "value -= 9")
    first, second = (_project(name, {f"{name}/a.py": text}, tmp_path) for name, text in (("one", long), ("two", near)))
    dedupe.keep_new([first, second], dedupe.Seen())
    assert (len(first.code), len(second.code)) == (1, 0)
    assert [pair.name for _, pair in second.pairs] == ["f9"]


def test_held_out_has_no_file_and_no_function_of_training(tmp_path: Path) -> None:
    shared = "@cached\n" + _documented("shared", "Say a word that both know.", 7)
    train = _project("one", {"one/a.py": BODY + shared}, tmp_path)
    own = _documented("own", "Say a word that one knows.", 8)
    filler = "\n".join(_documented(f"g{i}", "Count up to the number.", i + 20) for i in range(9))
    test = _project(
        "two", {"two/a.py": shared + filler, "two/b.py": own + filler.replace("g", "h")}, tmp_path, held=True
    )
    seen = dedupe.Seen()
    dedupe.keep_new([train], seen)
    known = set(seen.functions)
    dedupe.keep_unseen([test], seen)
    assert [file.path for file in test.code] == ["two/b.py"]
    assert "shared" not in {pair.name for _, pair in test.pairs}
    assert known and not known & {fingerprint(pair.code) for _, pair in test.pairs}


def test_one_sentence_is_not_learnt_too_often(tmp_path: Path) -> None:
    text = "\n".join(_documented(f"f{i}", "Say the same word again.", i) for i in range(50))
    found = _project("one", {"one/a.py": text}, tmp_path)
    dedupe.keep_new([found], dedupe.Seen())
    assert len(found.pairs) == 20


def test_no_project_gives_more_than_its_share_of_pairs(tmp_path: Path) -> None:
    def project(name: str, count: int) -> Harvest:
        told = (_documented(f"f{i}", f"Add {i} to the {name} twice.", i) for i in range(count))
        return _project(name, {f"{name}/a.py": "\n".join(told)}, tmp_path)

    found = [project("big", 60), *(project(f"small_{name}", 6) for name in "abcdefghi")]
    dedupe.cap_shares(found, pairs=0.2)
    assert [len(harvested.pairs) for harvested in found] == [13, *[6] * 9]


def test_no_project_gives_more_than_its_share(tmp_path: Path) -> None:
    def project(name: str, count: int) -> Harvest:
        words = [f"{name}_{chr(97 + i // 10)}{chr(97 + i % 10)}" for i in range(count)]
        return _project(name, {f"{name}/{word}.py": BODY.replace("value", word) for word in words}, tmp_path)

    found = [project("big", 60), *(project(f"small_{name}", 6) for name in "abcdefghi")]
    dedupe.cap_shares(found, code=0.2)
    sizes = [sum(len(file.text) for file in project.code) for project in found]
    assert 0.1 < sizes[0] / sum(sizes) <= 0.2
    assert {len(project.code) for project in found[1:]} == {6}


# --- stories, rows


def test_stories_are_whole_and_split(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    told = [f"Once there was a cat that had {i} hats. " * 5 for i in range(40)]
    (tmp_path / "text/tinystories.txt").write_text("<|endoftext|>\n".join([*told, told[0], "cut off"]))
    (tmp_path / "text/shakespeare.txt").write_text("\n\n".join(f"King {i}:\nA horse! " * 9 for i in range(900)))
    train, test = ([*stories.stories(tmp_path, heldout=held)] for held in (False, True))
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    tales = [row["text"] for row in train + test if row["project"] == "tinystories"]
    assert sorted(tales) == sorted(story.strip() + "\n" for story in told)
    assert {row["project"] for row in test} == {"tinystories", "shakespeare"}


def test_rows_return_as_written(tmp_path: Path) -> None:
    told = [{"text": "a\u2028b\r\n\tc"}, {"text": "é\n"}]
    assert rows.write(tmp_path / "new" / "a.jsonl.xz", told) == 2
    assert [*rows.read(tmp_path / "new" / "a.jsonl.xz")] == told


# --- what travels with the repository

MODELS = ("pycoder", "docsum", "tinychat", "tinygal", "tinygpt2")


@pytest.mark.parametrize("name", MODELS)
def test_held_out_texts_are_there_and_small(name: str) -> None:
    data = (heldout.DATA / f"{name}_heldout.txt").read_bytes()
    assert 100_000 < len(data) <= 250_000
    documents = pages(data.decode())
    assert len(documents) >= 10 and all(document.strip() for document in documents)
    assert len(set(documents)) == len(documents)


def test_held_out_code_is_python() -> None:
    documents = pages((heldout.DATA / "pycoder_heldout.txt").read_text(encoding="utf-8"))
    assert all(parsed(document) is not None for document in documents)


def test_held_out_conversations_are_chatml() -> None:
    for document in pages((heldout.DATA / "tinychat_heldout.txt").read_text(encoding="utf-8")):
        assert document.startswith("<|im_start|>system\n") and document.endswith("<|im_end|>\n")
        assert document.count("<|im_start|>") == document.count("<|im_end|>\n")


def test_the_summaries_csv_is_as_cnn_dailymails() -> None:
    with (heldout.DATA / "docsum_test.csv").open(encoding="utf-8", newline="") as file:
        table = [*csv.DictReader(file)]
    assert list(table[0]) == ["id", "article", "highlights"]
    assert len(table) >= 400
    assert len({row["id"] for row in table}) == len({row["article"] for row in table}) == len(table)
    for row in table:
        [node] = ast.parse(row["article"]).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is None
        assert 5 <= len(row["highlights"].split()) <= 20 and len(row["id"]) == 40
    texts = set(pages((heldout.DATA / "docsum_heldout.txt").read_text(encoding="utf-8")))
    assert not texts & {docsum_text(row["article"], row["highlights"]) for row in table}


def test_docsums_form_ends_where_the_answer_begins() -> None:
    assert docsum_prompt("def f():\n    pass\n") == "def f():\n    pass TL;DR:"
    assert docsum_text("x", "Say it.").startswith(docsum_prompt("x") + " ")


def _pairs() -> list[dict[str, str]]:
    made = ((f"find_{i}", f"def find_{i}(key, n={i}):\n    look_{i}(key)\n    return n") for i in range(60))
    return [{"name": name, "code": code} for name, code in made]


def test_held_out_files_are_written_from_the_work_folder(tmp_path: Path) -> None:
    work, data = tmp_path / "work", tmp_path / "data"
    functions_, code = _pairs(), {"project": "p", "path": "a.py", "text": BODY}
    long = [
        {**pair, "code": pair["code"] + "\n    # a\n    # b", "summary": f"Find it for {pair['name']} now."}
        for pair in functions_
    ]
    said = [{"messages": [{"role": "user", "content": f"Hi {i}"}], "kind": "greeting"} for i in range(3)]
    made = {"code": [code], "docs": [code], "stories": [code], "chat": said}
    made["functions"] = [{"project": "p", "path": "a.py", **pair} for pair in long]
    for kind, told in made.items():
        rows.write(work / kind / "heldout.jsonl.xz", told)
    heldout.write_heldout(work, data)
    first = {path.name: path.read_bytes() for path in data.iterdir()}
    heldout.write_heldout(work, data)
    assert first == {path.name: path.read_bytes() for path in data.iterdir()}
    assert first["tinychat_heldout.txt"].decode().count(PAGE) == 2
    with (data / "docsum_test.csv").open(newline="") as file:
        assert sorted(row["article"] for row in csv.DictReader(file)) == sorted(pair["code"] for pair in long)
    assert pages(first["pycoder_heldout.txt"].decode()) == [BODY]
