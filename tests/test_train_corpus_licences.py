"""Which licences may go into weights that are given away: of a project, of its archive, of a single file."""

from __future__ import annotations

from dataclasses import replace
from email import message_from_string
from pathlib import Path

import pytest

from tests.test_train_corpus import BODY, MIT_TEXT, SOURCE
from tools.train.corpus import files
from tools.train.corpus.sources import ALLOWED, SourceError, check_licence, read_list, refuse_unless_allowed

GPL_TEXT = "GNU GENERAL PUBLIC LICENSE Version 3"


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


def test_of_licences_that_all_bind_each_has_its_text() -> None:
    both = replace(SOURCE, license="Apache-2.0 AND MIT")
    metadata = message_from_string("License-Expression: Apache-2.0 AND MIT\n")
    texts = {"LICENSE": "Apache License\n  Version 2.0", "vendor/LICENSE": MIT_TEXT}
    assert check_licence(both, metadata, texts)["text"] == "LICENSE, vendor/LICENSE"
    with pytest.raises(SourceError, match="no text of MIT in the archive"):
        check_licence(both, metadata, {"LICENSE": texts["LICENSE"]})
    either = replace(SOURCE, license="Apache-2.0 OR MIT")
    one = message_from_string("License-Expression: Apache-2.0 OR MIT\n")
    assert check_licence(either, one, {"LICENSE": MIT_TEXT})["text"] == "LICENSE"


def test_a_held_out_name_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sources.toml"
    path.write_text('heldout = ["absent"]\n[project.a]\nversion="1"\nlicense="MIT"\narchive="wheel"\nsha256="00"\n')
    with pytest.raises(SourceError, match="absent"):
        read_list(path)


# --- a file of a project


@pytest.mark.parametrize(
    ("comment", "other"),
    [
        # Met in the archives: each of these projects is under a licence that is allowed, these files of theirs are not.
        ("This file is licensed under the Creative Commons Attribution-NonCommercial 4.0 International", True),
        ("Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)\n# MIT License\n# Apache License 2.0", True),
        ("from a recipe,\n# which is released under the Creative\n# Commons Attribution-Share-Alike License", True),
        ("distributed under the terms of the eGenix.com Public License Agreement", True),
        (
            "Licensed under the Sapiens2 License. You may obtain a copy of\n# it. See the License for the limitations",
            True,
        ),
        ("This is free software; see the GNU General\n# Public License", True),
        ("Licensed under the Apache License, Version 2.0; see the License for the limitations", False),
        ("Distributed under the same license as SciPy.", False),
        ("Distributed under the MIT License. See LICENSE.txt", False),
        ("Use of this source code is governed by a license; see the LICENSE file", False),
        ("Copyright 2020 Somebody. All rights reserved.", False),
        ("Compares a GPLVM with others", False),
    ],
)
def test_a_file_that_names_another_licence_than_its_project_is_left_out(comment: str, other: bool) -> None:
    text = f"# {comment}\n\n{BODY}"
    assert files.under_other_terms(text) is other
    assert (files.clean_code(text) is None) is other
    assert not files.under_other_terms(BODY + text), "only the comment at the top speaks for the file"
