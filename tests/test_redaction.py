"""No secret and no control sequence in what is logged or shown; all other text as it was."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import sft
from commands import Commands
from conftest import ROOT
from hubs import ADA, hub_of_ada
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from unsloth_jobs.events import clean
from unsloth_jobs.jobs import local_runner
from unsloth_jobs.redaction import plain, redact

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALNUM = LETTERS + LETTERS.upper() + "0123456789"


def made_of(alphabet: str, least: int, most: int | None = None) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most or least)


HUB = st.builds("{}{}".format, st.sampled_from(["hf_", "api_org_"]), made_of(ALNUM, 34))
BARE = st.one_of(
    HUB,
    st.builds(
        "{}1{}".format, st.sampled_from(["sk-", "sk-proj-", "sk-svcacct-", "sk-ant-api03-"]), made_of(ALNUM + "_-", 40, 120)
    ),
    st.builds("wandb_v1_{}".format, made_of(ALNUM + "_", 40, 80)),
    st.builds("{}{}".format, st.sampled_from(["AKIA", "ASIA"]), made_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)),
    st.builds("{}{}".format, st.sampled_from(["ghp_", "gho_", "ghs_"]), made_of(ALNUM, 36)),
    st.builds("github_pat_{}".format, made_of(ALNUM + "_", 60, 82)),
    st.builds("hf_oauth_{}".format, made_of(ALNUM + "_-.", 40)),
    st.builds("{}{}".format, st.sampled_from(["hf%5F", "hf%5f", "hf\\u005f"]), made_of(ALNUM, 34)),
    st.builds("glpat-{}".format, made_of(ALNUM + "_-", 20)),
    st.builds("AIza{}".format, made_of(ALNUM + "_-", 35)),
    st.builds("ya29.{}".format, made_of(ALNUM + "_-", 40)),
    st.builds("{}-{}".format, st.sampled_from(["xoxb", "xoxp", "xoxa", "xapp"]), made_of(ALNUM + "-", 24)),
    st.builds("npm_{}".format, made_of(ALNUM, 36)),
    st.builds("pypi-AgEI{}".format, made_of(ALNUM + "_-", 100)),
    st.builds("{}{}".format, st.sampled_from(["gsk_", "r8_"]), made_of(ALNUM, 40)),
    st.builds("eyJ{}.{}.{}".format, *[made_of(ALNUM + "_-", 20, 60)] * 3),
)
HEX = made_of("0123456789abcdef", 40)
IN_CONTEXT = st.one_of(
    st.tuples(st.sampled_from(["WANDB_API_KEY=", '"wandb_api_key": "', "wandb login ", "wandb: key "]), HEX),
    st.tuples(
        st.sampled_from(["AWS_SECRET_ACCESS_KEY=", "aws_secret_access_key = ", '"SecretAccessKey": "']),
        made_of(ALNUM + "/+", 40),
    ),
    st.tuples(
        st.sampled_from(["Authorization: Bearer ", "'authorization': 'Bearer ", "authorization=Basic "]),
        made_of(ALNUM + "._-", 16, 80),
    ),
    st.tuples(st.sampled_from(["https://ada:", "http://x-token:"]), made_of(ALNUM, 12, 40)).map(
        lambda pair: (pair[0], pair[1] + "@")
    ),
    st.tuples(
        st.sampled_from(
            [
                "https://s3.amazonaws.com/f?X-Amz-Signature=",
                "https://storage.googleapis.com/f?X-Goog-Signature=",
                "https://x.blob.core.windows.net/f?sv=2024&sig=",
                "https://cdn-lfs.hf.co/f?Expires=1&Signature=",
                "https://cdn-lfs.hf.co/f?Policy=",
            ]
        ),
        made_of("0123456789abcdef", 64),
    ),
    st.tuples(
        st.sampled_from(
            ["api_key='", '"apiKey": "', "X-Api-Key: ", "AccountKey=", '{\\"client_secret\\": \\"', "access_token="]
        ),
        made_of("0123456789abcdef", 31).map("1{}".format),
    ),
    st.tuples(st.sampled_from(["DB_PASSWORD=", "passwd: ", "'passphrase': '"]), made_of(ALNUM, 12, 40)),
    st.tuples(st.sampled_from(["Cookie: token=", "set-cookie: session="]), made_of(ALNUM, 20, 40)),
    st.tuples(st.sampled_from(["postgres://ada:", "mongodb+srv://ada:", "redis://:"]), made_of(ALNUM, 12, 40)).map(
        lambda pair: (pair[0], pair[1] + "@")
    ),
)
EDGES = st.sampled_from(["", " ", "\n", '"', "'", "=", ":", "(", "\t", "/", ",", "\x1b[31m"])


@settings(max_examples=300, deadline=None)
@example(before="0\x90", opening="\x1b[31m", token="glpat-" + "0" * 20, closing="", after="")
@given(st.text(), EDGES, BARE, st.sampled_from(["", " ", "\n", '"', "'", ")", ",", "\x1b[0m"]), st.text())
def test_a_token_is_cut_out_of_any_text(before, opening, token, closing, after):
    text = before + " " + opening + token + closing + after
    assert token not in redact(text)
    assert token not in clean(text)
    assert token not in plain(text)


@settings(max_examples=200, deadline=None)
@given(st.text(), IN_CONTEXT, st.text(alphabet=" \n\"',&"))
def test_a_key_that_its_context_gives_away_is_cut_out(before, secret, after):
    context, key = secret
    assume(key.rstrip("@") not in before)
    said = redact(f"{before} {context}{key}{after}")
    assert key.rstrip("@") not in said
    assert context.strip().removesuffix("token=").removesuffix("session=").strip() in said  # whose key it was stays


@settings(max_examples=200, deadline=None)
@given(st.text(ALNUM, min_size=8, max_size=60), st.text(), st.text())
def test_this_process_s_own_secret_is_cut_out_whatever_it_looks_like(secret, before, after):
    os.environ["MY_SERVICE_TOKEN"] = secret
    try:
        assert secret not in redact(before + secret + after).replace("***", "\0")
    finally:
        del os.environ["MY_SERVICE_TOKEN"]


@settings(max_examples=200, deadline=None)
@given(HEX, made_of("0123456789abcdef", 64))
def test_commits_checksums_and_ids_stay(commit, checksum):
    text = (
        f"revision {commit}, sha256:{checksum}, git+https://github.com/huggingface/trl@{commit}, HF_TOKEN is set, "
        f"LiquidAI/LFM2.5-1.2B-Instruct, hf_transfer, hf_hub_download, hf_xet==1.8.0, hf_packed_attention, sk-learn, "
        f"task-specific-fine-tuning-of-language-models, https://huggingface.co/ada/out/commit/{commit}, wandb: run {commit[:8]}, "
        f"Root=1-68ef62a0-63f3c4056cb46c2169cf2218;65732a89-ffad-4eff-acfb-2e69edcf215c, bearer of news, max_tokens=2048, api_key=None, password: str, cookie: chocolate, pypi-attestations, "
        f"eos_token: <|im_end|>, sha1-{commit}, https://huggingface.co:443/ada/out, npm_config_cache, r8_tmp"
    )
    assert plain(text) == text


@settings(max_examples=300, deadline=None)
@given(
    st.text(),
    st.sampled_from(
        [
            "\x1b[31m",
            "\x1b[2J",
            "\x1b]0;title\x07",
            "\x1b]8;;https://evil\x1b\\",
            "\x1bc",
            "\x9b2J",
            "\x07",
            "\x08",
            "\x1bP1$r\x1b\\",
            "\u202e",
        ]
    ),
    st.text(),
)
def test_what_steers_a_terminal_is_cut_out(before, sequence, after):
    said = plain(before + sequence + after)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", said)
    said.encode()


def test_links_titles_and_colours_leave_their_text():
    assert plain("\x1b]8;;https://x\x1b\\here\x1b]8;;\x1b\\ and \x1b[1;31mred\x1b[0m\ttab\nline") == "here and red\ttab\nline"
    assert plain("\x1b]0;a title without an end\nthe next line") == "\nthe next line"
    assert clean(" 10%|█ | 1/9\r 20%|██ | 2/9\r") == " 20%|██ | 2/9"


@settings(max_examples=200, deadline=None)
@given(st.text(), BARE, st.text())
def test_the_template_cuts_it_out_itself(before, token, after):
    """It runs without these scripts too, and where nothing else reads its log."""
    assert token not in sft.redacted(f"{before} {token} {after}")


@settings(max_examples=200, deadline=None)
@given(
    made_of(ALNUM, 34),
    st.integers(4, 30),
    st.sampled_from(["\u200b", "\x00", "\x1b[31m", "\x1b[0m", "\ufeff", "\xad", "\u2060", "\r", "\u202e", "\x07"]),
)
def test_a_token_with_something_unshown_in_it_is_cut_out(letters, at, unshown):
    token = "hf_" + letters
    text = f"the key {token[:at]}{unshown}{token[at:]} is"
    for said in (redact(text), plain(text), sft.redacted(text)):
        assert token not in re.sub(r"\x1b\[\d*m|[\u200b\x00\ufeff\xad\u2060\r\u202e\x07]", "", said)
    assert redact("a family: \U0001f469\u200d\U0001f467 \x1b[31mred") == "a family: \U0001f469\u200d\U0001f467 \x1b[31mred"


@pytest.mark.parametrize("name", ["APIKEY", "DB_PASSWD", "KEY_PASSPHRASE", "MY_SECRET_2", "my_token", "OPENAI_API_KEY"])
def test_a_variable_that_holds_a_secret_is_known_by_its_name(monkeypatch, name):
    monkeypatch.setenv(name, "correct horse battery")
    assert redact("the correct horse battery staple") == sft.redacted("the correct horse battery staple") == "the *** staple"


def test_the_template_s_traceback_has_no_token(tmp_path):
    code = f"import sys, sft; sft.train = lambda settings: 1 / 0 if '{ADA}' == '' else open('/nowhere/{ADA}'); sys.exit(sft.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--dataset", "x"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "templates"), "HF_TOKEN": ADA},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "FileNotFoundError" in done.stderr and '"code": "error"' in done.stdout
    assert ADA not in done.stdout + done.stderr


def test_a_local_log_is_redacted_on_its_way_in_and_keeps_its_bytes(tmp_path):
    child = subprocess.Popen(["printf", rf"key {ADA}\n\033[31mred\377 {ADA}\r 10%%\n"], stdout=subprocess.PIPE)
    with (tmp_path / "log").open("wb") as log:
        local_runner.copy_log(child.stdout, log)
    assert (tmp_path / "log").read_bytes() == b"key hf_***\n\x1b[31mred\xff hf_***\r 10%\n"


@pytest.mark.parametrize("words", [["check.py", "ada/tiny", "ada/docs"], ["status.py", "1" * 24], ["logs.py", "1" * 24]])
def test_what_the_hub_answers_reaches_the_terminal_plain(tmp_path, words):
    with hub_of_ada(tmp_path / "hub") as hub:
        hub.faults.add(path="/api/", status=403, body={"error": f"no \x1b[2J\x1b]0;owned\x07 \x9b31m for {ADA} [red]x[/]"})
        commands = Commands(hub.env(token=ADA), tmp_path)
        done, asked = commands.run(*words, code=None), commands.run(*words, "--json", code=None)
    assert done.returncode == asked.returncode == 4
    for said in (done.stdout + done.stderr, asked.stdout + asked.stderr):
        assert ADA not in said
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)
        assert "for hf_***" in said
    assert json.loads(asked.stdout)["problems"]
