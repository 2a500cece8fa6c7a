"""What `sweep data` makes of files, good and bad, is as recorded, see ../recording.py."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.registry import TASKS, lookup
from orchestrator.tasks import math, sources
from tests.recording import Answers, answer, compare, compare_text
from tests.seen import as_lines

RECORDED = Path(__file__).parent / "recorded"
Rows = dict[str, dict[str, list[dict[str, Any]]]]
"""Split to language to rows."""


def typed(*words: str) -> str:
    """A command and what it prints."""
    before, streams = (sys.stdout, sys.stderr), (io.StringIO(), io.StringIO())
    sys.stdout, sys.stderr = streams
    try:
        code = main([*words])
    finally:
        sys.stdout, sys.stderr = before
    out, errors = (stream.getvalue() for stream in streams)
    if "--json" in words and out:
        out = "".join(f"{line}\n" for line in as_lines(json.loads(out)))
    return f"$ sweep {shlex.join(words)}\n{out}{errors}" + (f"[exit code {code}]\n" if code else "")


def write(path: Path, rows: list[Any], text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = text or "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(whole, encoding="utf-8", errors="surrogatepass")


def problems(folder: Path, languages: str = "en es", num: int = 12, **changed: Any) -> Path:
    """Word problems, an item a row; some rows of a language are changed."""
    for language in languages.split():
        rows = [
            {"id": n, "question": f"{language}: what is {n} + {n}?", "answer": f"{n} twice\n#### {2 * n}"}
            for n in range(num)
        ]
        rows += changed.get(language, [])
        write(folder / f"{language}.jsonl", rows)
    return folder


def splits(folder: Path, spoil: Callable[[Rows], None] = lambda rows: None) -> None:
    """Word problems of three splits and two languages."""
    rows: Rows = {
        split: {
            language: [
                {
                    "id": f"{split}-{n}",
                    "question": f"{split} {language} {n}?",
                    "answer": f"so {n}",
                    "gold": str(n),
                }
                for n in range(4)
            ]
            for language in ("en", "es")
        }
        for split in ("train", "validation", "test")
    }
    spoil(rows)
    for split, each in rows.items():
        for language, lines in each.items():
            write(folder / split / f"{language}.jsonl", lines)


def spoiled(rows: Rows) -> None:
    """One of each thing that may be wrong."""
    train = rows["train"]
    del rows["validation"]["es"]
    train["es"].pop(2)
    train["es"].append({**train["en"][3], "id": "train-0", "question": "new?"})
    train["en"][1]["question"] = train["en"][0]["question"]
    train["es"][1]["gold"] = "siete"
    train["es"][0]["gold"] = "8"
    rows["validation"]["en"][0]["id"] = "train-3"
    rows["test"]["es"][3]["question"] = "TRAIN — es, 0"
    train["en"][2]["question"] += "\x07 cafe\u0301"
    rows["test"]["es"][0] = {**rows["test"]["en"][0]}
    rows["test"]["es"][1]["question"] = "  "


CALL = 'API-Request: [AddMeeting(topic="{}", kind="in person", who="[\'Ann\', \'Bo\']", token="a1b2")]'
ASKED = (
    "User: Plan a talk about {}, in person, with Ann and Bo, token a1b2.\nAI: Sure.\nGenerate API Request:\n"
)
API = {
    "name": "AddMeeting",
    "description": "Adds.",
    "input_parameters": {
        "topic": {"type": "str", "description": "The topic."},
        "kind": {"type": "str", "description": "One of: 'online', 'in person'."},
        "who": {"type": "list", "description": "Names."},
        "token": {"type": "str", "description": "Token."},
    },
}


def requests(folder: Path) -> None:
    """Calls in two languages, of which each Spanish one but the first is wrong in its own way."""

    def row(id_: int, topic: str = "the sea", **changed: Any) -> dict[str, Any]:
        fields = {
            "id": id_,
            "file": "a.json",
            "instruction": f"Generate.\n{json.dumps(API)}",
            "input": ASKED.format(topic),
            "expected_output": CALL.format(topic),
        }
        return {**fields, **changed}

    names = (
        "AddMeeting",
        "in person",
        "['Ann', 'Bo']",
        "a1b2",
        "token=",
        "User: ",
        '"str"',
        "the sea, in",
        "[Add",
    )
    others = ("Anade", "en persona", "['Ann']", "b1c2", "key=", "Usuario: ", '"texto"', "el mar, in", "Add")
    es = [row(0, "el mar")]
    es += [
        json.loads(json.dumps(row(n, "the sea")).replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))
        for n, (old, new) in enumerate(zip(names, others, strict=True), start=1)
    ]
    write(folder / "en.jsonl", [row(n) for n in range(len(es))])
    write(folder / "es.jsonl", es)


def test_what_is_imported_and_checked_is_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems(
        Path("raw"),
        es=[{"id": 99, "question": "solo?", "answer": "1"}, {"id": 3, "question": "x", "answer": 1}],
    )
    problems(Path("few"), num=2)
    problems(
        Path("bad"),
        en=[{"id": "b", "question": "?", "answer": "none"}],
        es=[{"id": "b", "question": "?", "gold": 1}],
    )
    splits(Path("good"))
    splits(Path("spoiled"), spoiled)
    requests(Path("calls"))
    for language in ("en", "es"):
        write(
            Path(f"tests/mgsm_{language}.tsv"),
            [],
            f'{language} robe?\t2,125\n"{language} ""two""\nlines"\t3\n',
        )
    found = [
        typed("data", *shlex.split(line))
        for line in (
            *("describe math", "describe api_calling", "describe maths", "check nowhere", "check tests"),
            "import math raw --test tests --num-validation 2 --out set",
            "import math raw --test tests --num-validation 2 --out set",
            "import math raw --test tests --num-validation 2 --out set --seed 1",
            "import math raw --test tests --num-train 3 --num-test 1 --out set --seed 1 --force",
            *("check set", "check set --json", "check raw", "check bad", "check good --languages en,sw de"),
            *(
                "check spoiled",
                "check spoiled --json --languages en",
                "import math spoiled --out made",
                "check made",
            ),
            "import math few --num-train 2 --num-validation 1 --out x",
            *(
                "import math few --out few",
                "import math bad --out x --languages en sw",
                "import math nowhere --out x",
            ),
            "import math bad --num-train 99 --out x",
            *(
                "check calls",
                "check calls --task api_calling --json",
                "import api_calling calls --out called",
            ),
            *(
                "check called",
                "check called --max-length 1",
                "import api_calling raw --out x",
                "check calls --task math",
            ),
            *(
                "import math",
                "import math raw",
                "import math --out x",
                "describe",
                "check raw --out x",
                "frob",
            ),
            *(
                "import math raw --out x --tokenizer y",
                "import math raw --out x --num-train 0",
                "check raw --to x",
            ),
            *("import math raw --out x --num-validation -1", "import math raw --out x --revision abc"),
            *("check raw --tokenizer nowhere.json", "check raw --task maths", "translate math raw --to es"),
            *(
                "translate api_calling calls",
                "translate api_calling calls x",
                "translate api_calling calls --to es",
            ),
            "translate api_calling calls --to es --model m --out x --num-train 0",
        )
    ]
    for path in sorted(Path("set").rglob("*.json*")) + sorted(Path("made").rglob("*.json*")):
        lines = [f"# {path}", path.read_text()]
        found.append("\n".join(lines))
    words = {r"\b([0-9a-f]{8})[0-9a-f]{56}\b": r"\1", str(tmp_path): "FOLDER"}
    compare_text(RECORDED / "data.txt", "\n".join(found), words)


BAD: Mapping[str, str | bytes] = {
    "empty.jsonl": "",
    "cut.jsonl": '{"question": "a", "answer": "1"}\n\n{"question"',
    "numbers.jsonl": "1\n",
    "latin.jsonl": b'{"question": "\xe9"}\n',
    "pointer.jsonl": "version https://git-lfs.github.com/spec/v1\noid 1\n",
    "surrogate.jsonl": '{"question": "\\ud800", "answer": "1"}\n',
    "nothing.jsonl": '{"question": "a"}\n',
    "number.jsonl": '{"question": 3, "answer": "1"}\n',
    "deep.jsonl": "[" * 3000 + "\n",
    "array.json": '[ {"question": "a", "answer": "1"} , \n{"question": "b", "gold": 2.0, "answer": null}]\n ',
    "cut.json": '[{"question": "a"}, {"question"',
    "more.json": "[] x",
    "mixed.json": '[{"question": "a", "answer": "1"}, 3]',
    "latin.json": b'[{"question": "\xe9"}]',
    "marked.json": b'\xef\xbb\xbf[{"question": "\x65\xcc\x81", "answer": "a\n#### 1,000."}]'.replace(
        b"\n", b"\\n"
    ),
}


def files_asked(folder: Path) -> Answers:
    for name, data in BAD.items():
        path = folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

        def rows(path: Path = path) -> object:
            return [
                (
                    number,
                    math.line_of(row, id_=str(number), language="en", where=sources.where_of(path, number)),
                )
                for number, row in sources.stream(path)
            ]

        yield name, answer(rows)


ROWS: list[dict[str, Any]] = [
    {"question": "q", "answer": "a\n#### 7"},
    {"question": "q", "answer": "<<3+4=7>>a 3+4=<<3+4=7>>7\n#### 1,234.\nmore"},
    {"question": "q", "answer": "a\n####"},
    {"question": "q", "answer": "The answer is 12."},
    {"question": "q", "answer": "no number"},
    {"question": "q", "answer": "12"},
    {"question": "q", "answer": 12.0},
    {"question": "q", "answer": None, "answer_number": 5},
    {"question": "q", "answer": "so 5", "answer_number": 5},
    {"question": "q", "answer": "so five", "gold": "5"},
    {"question": "q", "answer": "5", "gold": "6"},
    {"question": "q", "answer": True},
    {"question": "q", "gold": True, "answer": "x"},
    {"question": "q", "gold": "", "answer": "7"},
    {"question": "q"},
    {"question": "q", "answer": ["7"]},
    {"answer": "7"},
    {"query": "Question:\nq\nAnswer:", "response": " so it is 8 ", "lang": "EN", "idx": 3},
    {"instruction": "q", "output": "nothing", "language": "xx", "item_id": 0},
    {"question": "q", "answer": "so 9", "lang-id": "en-17"},
    {"question": "q", "answer": "so 9", "lang_id": "17-sw"},
    {"question": "q", "answer": "so 9", "lang_id": "a-b", "lang": "de", "id": None},
]


def rows_asked() -> Answers:
    task = lookup(TASKS, "math", kind="task")
    for row in ROWS:
        yield f"row {row}", answer(lambda: task.line_of(row, id_="i", language="en", where="w"))  # noqa: B023
        yield f"place {row}", (math.is_row(row), math.place_of(row), task.id_of(row, "here"))
        line = answer(lambda: task.line_of(row, id_="i", language="en", where="w"))  # noqa: B023
        if isinstance(line, dict):
            problem = task.problem_of(line)
            yield f"problem of {row}", problem or task.item_of(line, "en")
    for text in (
        "a\tb\n",
        "\ufeffa\tb\r\nc\td\r\n",
        "question\tid\tanswer\nq\t7\t3\n",
        "no tab\n",
        'a "x" b\t3',
        '"a\nb"\t3\n',
    ):
        path = Path("x.tsv")
        path.write_text(text)
        yield f"tsv {text!r}", answer(lambda: list(task.lines(path, "en")))  # noqa: B023
    for code in ("en", "es", "sw", "ja", "zz"):
        for split in ("train", "validation", "test", "dev"):
            yield f"generated {split} {code}", answer(lambda: task.generate(split, code, 2, 3))  # noqa: B023
    api = lookup(TASKS, "api_calling", kind="task")
    for code in ("en", "de", "zz"):
        yield f"calls {code}", answer(lambda: api.generate("train", code, 2, 1))  # noqa: B023


def test_rows_of_files_are_read_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def plain(found: Answers) -> Iterator[tuple[str, object]]:
        for question, each in found:
            yield question[:300], each.replace(str(tmp_path), "FOLDER") if isinstance(each, str) else each

    compare(RECORDED / "files.txt", plain(files_asked(tmp_path)))
    compare(RECORDED / "rows.txt", plain(rows_asked()))
