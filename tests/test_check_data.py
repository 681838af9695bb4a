"""check.py on data: what cannot be learned from it, what is wrong in a file, what rows teach unnoticed."""

# ruff: noqa: F811 (fixtures are those of test_check.py)

from __future__ import annotations

import json

import pytest
from test_check import chat, check, shared, write_rows  # noqa: F401


def test_data_that_cannot_be_learned_says_why(shared, check, tmp_path):
    long = [chat("How?", "word " * 200 + str(number)) for number in range(60)]
    pixel = b"\x89PNG\r\n\x1a\n"  # whatever follows, it is taken for a picture by its name
    kinds = {
        "photographs": {},
        "preferences": {"train.jsonl": [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 60},
        "pictures": {"train.jsonl": [{"image": "a.png", "label": 3}] * 60},
        "empty": {"train.jsonl": []},
        "silent": {"train.jsonl": [chat(f"What is {number}?", " ") for number in range(60)]},
        "broken": {"train.jsonl": [chat("a", "b")] * 60},
        "two": {"english/train.jsonl": long, "german/train.jsonl": long},
        "three": {"train.jsonl": [chat(f"What is {number}?", "A number.") for number in range(3)]},
        "long": {"train.jsonl": long},
        "gated": {"train.jsonl": long},
        "private": {"train.jsonl": long},
    }
    for name, files in kinds.items():
        folder = write_rows(tmp_path / name, files)
        if name == "photographs":
            folder.mkdir()
            for number in range(3):
                (folder / f"{number}.png").write_bytes(pixel)
        if name == "two":
            configs = [{"config_name": one, "data_files": f"{one}/*.jsonl"} for one in ("english", "german")]
            (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
        if name == "broken":
            with (folder / "train.jsonl").open("a") as file:
                file.write('{"messages": [{"role": "user", "content"\n')
        shared.add_repo(f"data/{name}", folder, type="dataset")
    shared.store.repos["dataset", "data/gated"].gated = "manual"
    shared.store.repos["dataset", "data/private"].private = True
    found = {name: check("ada/tiny", f"data/{name}", "--max-length", "64") for name in kinds}
    assert {name: (one["exit_code"], *one["codes"]) for name, one in found.items()} == {
        "photographs": (1, "unknown_columns"),
        "preferences": (1, "preference_data"),
        "pictures": (1, "unknown_columns"),
        "empty": (1, "dataset_unreadable"),
        "silent": (1, "nothing_supervised"),
        "broken": (1, "dataset_unreadable"),
        "two": (1, "config_needed"),
        "three": (0, "few_rows"),
        "long": (0, "no_eos"),
        "gated": (1, "gated"),
        "private": (1, "not_found"),
    }
    assert "only text can be learned" in found["pictures"]["problems"][0]["message"]
    assert "only text can be learned" in found["photographs"]["problems"][0]["message"]
    assert "60 × no answer" in found["silent"]["problems"][0]["message"]
    assert "--dataset-config english" in found["two"]["problems"][0]["fix"]
    assert "hf auth login" in found["private"]["problems"][0]["fix"]


def test_columns_of_json_are_read_from_the_hub_as_the_job_reads_them(shared, check, tmp_path):
    """datasets gives columns whose rows differ a type of their own, and hands them out as text where decoding is off."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    turns = [{"weight": 1}, {"name": "kim"}, {"reasoning_content": "t"}, {"tool_calls": [call]}]
    rows = [chat(f"What is {number}?", "A number.") for number in range(60)]
    for number, row in enumerate(rows):
        row["messages"][1] |= turns[number % 4]
    shared.add_repo("data/mixed", write_rows(tmp_path, {"train.jsonl": rows}), type="dataset")
    found = check("ada/tiny", "data/mixed")
    # The tiny model's template renders no calls: where they were text, they would not be seen as such.
    assert (found["exit_code"], found["mask"]["rows_without_answer"]) == (0, 15)
    assert "15 × the chat template does not render its tool calls" in found["codes"]["rows_lost"]["message"]
    assert found["mask"]["calls_not_rendered_rows"] == 15
    assert "In 15 of 60 rows" in found["codes"]["calls_not_rendered"]["message"]


def test_rows_with_pictures_among_others_are_counted_and_refused_where_they_are_most(shared, check, tmp_path):
    seen = chat("What is this?", "A number.")
    seen["messages"][0]["content"] = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]
    others = [chat(f"What is {number}?", "A number.") for number in range(60)]
    write_rows(
        tmp_path,
        {
            "one.jsonl": [*others, seen],
            "some.jsonl": [*others[:20], *[seen] * 20, *others],
            "most.jsonl": [*others[:20], *[seen] * 40],
        },
    )
    one, some, most = (
        check("ada/tiny", str(tmp_path / name), "--sample", "61") for name in ("one.jsonl", "some.jsonl", "most.jsonl")
    )
    assert (one["exit_code"], one["codes"]["picture_rows"]["severity"]) == (0, "warning")
    assert "1 of 61 rows hold pictures" in one["codes"]["picture_rows"]["message"]
    assert (some["exit_code"], some["mask"]["rows_without_answer"]) == (0, 20)
    assert "20 of 61 rows (about 33 of all 100) hold pictures" in some["codes"]["picture_rows"]["message"]
    assert (most["exit_code"], most["codes"]["picture_rows"]["severity"]) == (1, "error")
    assert (
        "40 of 60 rows hold pictures" in most["codes"]["picture_rows"]["message"]
        and "20 of 60 remain" in most["codes"]["picture_rows"]["message"]
    )


def test_a_file_here_is_read_to_its_end_and_what_is_wrong_in_it_is_found(check, tmp_path):
    rows = "".join(json.dumps(chat(f"What is {number}?", "A number.")) + "\n" for number in range(60_000))
    (tmp_path / "rows.jsonl").write_text(rows + '{"messages": [')
    found = check("ada/tiny", str(tmp_path / "rows.jsonl"))
    assert (found["exit_code"], list(found["codes"])) == (1, ["dataset_unreadable"])
    assert "Line 60,001 of rows.jsonl" in found["problems"][0]["message"]
    (tmp_path / "rows.jsonl").write_text(rows)
    assert check("ada/tiny", str(tmp_path / "rows.jsonl"))["dataset"]["rows"] == 60_000
    (tmp_path / "rows.jsonl").write_text("null\n")
    assert "is null" in check("ada/tiny", str(tmp_path / "rows.jsonl"))["codes"]["dataset_unreadable"]["message"]


def test_a_line_on_the_hub_over_which_a_library_would_end_is_named(shared, check, tmp_path):
    """`null` ends pyarrow without a word; a line of 100 MB would take many times its size."""
    (tmp_path / "rows").mkdir()
    line = json.dumps(chat("What is one?", "A number.")) + "\n"
    contents = {
        "null": "null\n" + line,
        "later": line * 3 + "null\n" + line,
        "huge": line + '{"text": "' + "x" * 10**8 + '"}\n',
    }
    for name, content in contents.items():
        (tmp_path / "rows" / "train.jsonl").write_text(content)
        shared.add_repo(f"lines/{name}", tmp_path / "rows", type="dataset")
    found = {name: check("ada/tiny", f"lines/{name}") for name in contents}
    assert {name: (one["exit_code"], list(one["codes"])) for name, one in found.items()} == dict.fromkeys(
        contents, (1, ["dataset_unreadable"])
    )
    messages = {name: one["problems"][0]["message"] for name, one in found.items()}
    assert messages["null"].startswith("Line 1 of train.jsonl is null")
    assert messages["later"].startswith("Line 4 of train.jsonl is null")
    assert messages["huge"].startswith("Line 2 of train.jsonl is longer than 5 MB")
    assert all(one["held"] < 2e9 for one in found.values())


def test_rows_that_teach_something_else_than_their_owner_thinks_are_told(shared, check, tmp_path):
    numbers = range(60)
    preferences = [chat(f"What is {number}?", "A number.") | {"chosen": "a", "rejected": "b"} for number in numbers]
    seen = [{"image": "a.png", "question": f"What is {number}?", "answer": "A number."} for number in numbers]
    kinds = {
        "handbook.jsonl": [{"text": f"Chapter {number}. How to do things."} for number in numbers],
        "rendered.jsonl": [{"text": f"<|im_start|>user\nWhat is {number}?<|im_end|>"} for number in numbers],
        "preferences.jsonl": preferences,
        "seen.jsonl": seen,
        "turns.jsonl": [{"prompt": f"What is {n}?", "chosen": chat("a", "b")["messages"], "rejected": "c"} for n in numbers],
        "objects.jsonl": [chat(f"What is {number}?", {"kind": "number", "none": None}) for number in numbers],  # type: ignore[arg-type]
        "judged.jsonl": [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in numbers],
        "preferred.jsonl": [
            {
                "input": {"messages": chat(f"What is {number}?", "")["messages"][:1]},
                "preferred_output": chat("", "A number.")["messages"][1:],
                "non_preferred_output": chat("", "No.")["messages"][1:],
            }
            for number in numbers
        ],
        "fields.jsonl": [{"question": f"What is {number}?", "answer": {"kind": "number"}} for number in numbers],
    }
    write_rows(tmp_path, kinds)
    latin = "question;answer\n" + "".join(f"Welche Größe, {number}?;Das reicht für {number}.\n" for number in numbers)
    (tmp_path / "latin.csv").write_bytes(latin.encode("cp1252"))
    (tmp_path / "numbers.csv").write_text("question,answer\n" + "".join(f"What is {number}?,{number}\n" for number in numbers))
    lines = [f"What is {number}?,A number\n" for number in numbers]
    (tmp_path / "open.csv").write_text("question,answer\n" + '"' + "".join(lines[:9]) + 'How?",Thus\n' + "".join(lines))

    def codes(name: str, *words: str) -> tuple[int, list[str]]:
        found = check("ada/tiny", str(tmp_path / name), *words)
        return found["exit_code"], list(found["codes"])

    named = ["--prompt-column", "question", "--completion-column", "answer"]
    assert codes("handbook.jsonl") == (0, ["raw_text"])
    assert codes("rendered.jsonl") == (0, [])
    assert codes("preferences.jsonl") == (0, ["preference_data"])
    assert codes("seen.jsonl") == (1, ["unknown_columns"])
    assert codes("seen.jsonl", *named) == (0, [])
    assert codes("turns.jsonl") == (1, ["preference_data"])
    assert codes("turns.jsonl", "--prompt-column", "prompt", "--completion-column", "chosen") == (0, ["preference_data"])
    assert codes("fields.jsonl") == (0, ["answers_as_json"])
    assert codes("preferred.jsonl") == (1, ["preference_data"])
    assert codes("preferred.jsonl", "--prompt-column", "input", "--completion-column", "preferred_output") == (
        0,
        ["preference_data"],
    )
    assert codes("objects.jsonl") == (0, ["answers_as_json"])
    assert codes("judged.jsonl") == (0, ["preference_data"])
    assert codes("latin.csv") == (0, ["encoding_guessed"])
    guessed = check("ada/tiny", str(tmp_path / "latin.csv"))
    assert "Größe, für" in guessed["codes"]["encoding_guessed"]["message"]
    assert guessed["dataset"]["read_as"] == {"encoding": "cp1252", "delimiter": ";"}
    assert codes("numbers.csv") == (0, [])
    assert codes("open.csv") == (0, ["rows_swallowed"])


PAGE = "<html><body>Please log in.</body></html>"


@pytest.mark.parametrize(
    ("place", "headers", "code"),
    [
        ("train.jsonl$", {}, "hub_unreachable"),
        ("train.jsonl$", {"Content-Type": "text/html"}, "hub_unreachable"),
        ("README.md$", {}, "hub_garbled"),
        ("/tree/", {}, "hub_garbled"),
    ],
)
def test_a_page_in_the_place_of_data_is_a_fault_of_the_hub(shared, check, tmp_path, place, headers, code):
    name = f"data/paged-{len(shared.store.repos)}"  # one that nothing is cached of
    rows = [chat(f"What is {number}?", "A number.") for number in range(500)]
    folder = write_rows(tmp_path, {"train.jsonl": rows})
    (folder / "README.md").write_text("# A card without metadata\n")
    shared.add_repo(name, folder, type="dataset")
    shared.journal.clear()
    shared.faults.add(path=f"{name}.*{place}", status=200, body=PAGE, headers=headers)
    found = check("ada/tiny", name, "--sample", "5")
    shared.faults.clear()
    assert (found["exit_code"], *found["codes"]) == (4, code)
    assert len(shared.journal.requests()) < 60
    again = check("ada/tiny", name, "--sample", "5")
    assert again["exit_code"] == 0
    assert "Repo card metadata" not in found["stderr"] + again["stderr"]
