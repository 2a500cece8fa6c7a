"""What counts as a credential and what does not, by tables; texts without them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.core.secrets import (
    found_in,
    known_values,
    line_reason,
    lines_with,
    masked,
    reason_of,
    redacted,
)

HEX = "0123456789abcdef0123456789abcdef01234567"  # as a key of W&B, and as a commit
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1234\nabcd\n-----END RSA PRIVATE KEY-----"

SETTINGS = [
    ("headers.Authorization", "Basic dXNlcjpwYXNzd29yZDEyMw=="),
    ("authorization", "Token a1b2c3d4e5"),
    ("conn", "Driver=x;Server=h;Uid=u;Pwd=hunter2x;"),
    ("conn", "Server=h; User Id=u; Password=hunter2"),
    ("conn", "host=h user=u password=hunter2 dbname=d"),
]
"""What counts only as a whole, or together with its name."""

FORMS = [
    "AKIAIOSFODNN7EXAMPLE",
    "ASIA0123456789ABCDEF",
    "ghp_" + "a1B2" * 9,
    "gho_" + "a1B2" * 9,
    "github_pat_11ABCDEFG0abcdefghijkl_" + "x" * 59,
    "glpat-xxxx1234yyyy5678zzzz",
    "hf_" + "abcdEFGHij" * 3 + "klmn",
    "sk-" + "a1b2c3d4" * 6,
    "sk-proj-" + "a1b2_c3-d4" * 6,
    "sk-ant-api03-" + "a1b2_c3-d4" * 9,
    "xoxb-123456789012-1234567890123-abcdefABCDEF",
    "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
    "AIzaSyA-1234567890abcdefghijklmnopqrstuv",
    "sk_live_0123456789abcdefABCDEF01",
    "npm_" + "a1B2" * 9,
    JWT,
    PEM,
    "s3://user:pass@host/bucket",
    "http://me:hunter2@head:8265",
    "postgresql://app:s3cr3t@db:5432/x",
    "https://user:p@ss/w0rd@host/x",
    "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=" + "aB1+" * 21 + "==",
    "https://b.s3.amazonaws.com/k?X-Amz-Signature=" + HEX,
    "Authorization: Basic dXNlcjpwYXNzd29yZA==",
    "https://host/x?v=2&api_key=a1b2c3d4e5",
    "https://a1b2c3d4e5f6a7b8c9d0e1f2@o123.ingest.sentry.io/45",
    "https://discord.com/api/webhooks/123456789012345678/" + "aB1_-" * 13,
    "https://hooks.slack.com/workflows/T0000/A0000/123456789/abcdefghijklmnop",
    "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..5eym8TW_c8SuK0lt.aB1aB1aB1aB1",
    "nvapi-" + "aB1_" * 16,
    "dckr_pat_" + "aB1c" * 7,
    "hvs.CAESIJ" + "aB1" * 20,
    "lsv2_pt_" + "a1b2" * 8 + "_a1b2c3d4e5",
    "tskey-auth-" + "aB1c" * 8,
    "shpat_" + "a1b2" * 8,
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_headers_and_the_pairs_by_which_a_database_is_reached_are_found(name: str, value: str) -> None:
    assert [key for key, _ in found_in({"a": {name: value}})] == [f"a.{name}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("authorization", "kerberos"),
        ("task.authorization", "bearer tokens of the environment"),
        ("conn", "host=h user=u password=$PASSWORD dbname=d"),
        ("conn", "Server=h;Trusted_Connection=yes"),
        ("note", "the password=hunter2 of an example"),
        ("options", "token=word level=2"),
    ],
)
def test_pairs_without_a_password_and_prose_are_none(name: str, value: str) -> None:
    assert not [*found_in({name: value})]


@pytest.mark.parametrize("value", FORMS)
def test_a_credential_of_a_known_form_is_found_under_any_name_and_in_any_text(value: str) -> None:
    assert reason_of("note", value) and reason_of("trainer.learning_rate", value)
    assert [key for key, _ in found_in({"a": {"b": [1, f"see {value} there"]}})] == ["a.b"]
    text = redacted(f"it said: {value} (again {value})")
    assert "***" in text and text.startswith("it said: ") and text.endswith(")")
    for part in (
        "hunter2",
        "s3cr3t",
        "w0rd",
        ":pass",
        "dXNl",
        "MIIE",
        HEX[:16],
        "1234567890",
        "a1B2",
        "EXAMPLE",
    ):
        assert part not in text
    if "://" not in value and ":" not in value and "AccountKey" not in value:
        assert value[:9] not in text and value[-9:] not in text


NAMED = [
    ("wandb.api_key", HEX),
    ("wandb.key", HEX),
    ("wandb", HEX),
    ("tracking.wandb_login", f"local-{HEX}"),
    ("WANDB_API_KEY", HEX),
    ("api_key", "x"),
    ("apiKey", "hunter2"),
    ("model.HF_TOKEN", "x"),
    ("token", "hunter2"),
    ("token", HEX),
    ("my_token", "abc123def456"),
    ("TOKEN_X.auth_token", "letmein"),
    ("db_password", "correct horse battery"),
    ("db_pwd", "letmein"),
    ("smtp.user_pass", "letmein"),
    ("login.passwd", "letmein"),
    ("client_secret", "s3cr3t"),
    ("service.credentials", "me:you"),
    ("aws_secret_access_key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    ("encryption_key", "deadbeefdeadbeefdeadbeefdeadbeef"),
    ("some_key", "Zk3p9QvT81xLmW04cYbR7sN2"),
    ("PGPASSWORD", "letmein"),
    ("kms_key", "hunter2"),
    ("store.account_key", "Zk3p9QvT81xLmW04cYbR7sN2"),
]


@pytest.mark.parametrize(("name", "value"), NAMED)
def test_a_text_under_the_name_of_a_credential_is_one(name: str, value: str) -> None:
    assert reason_of(name, value)
    assert [key for key, _ in found_in({"a": {name: value}})] == [f"a.{name}"]


PLAIN = [
    ("pad_token_id", 0),
    ("pad_token_id", "151643"),
    ("max_new_tokens", 512),
    ("num_tokens", "1e6"),
    ("sort_key", "loss"),
    ("first_pass", "greedy"),
    ("url", "https://host/x?page_token=next&token={TOKEN}"),
    ("env", [{"name": "SEED", "value": "3"}]),
    ("sort_key", "eval/gsm8k_accuracy_5shot"),
    ("sort_key", "qwen3-0.6b-instruct-2507"),
    ("group_key", "model.layers.0.self_attn.q_proj.weight"),
    ("primary_key", "id"),
    ("key", "answer_number"),
    ("key", HEX),
    ("cache_key", "sha256:" + HEX),
    ("commit", HEX),
    ("wandb.commit", HEX),
    ("dataset_key", "5f2b8c1e-1111-4222-8333-944455566677"),
    ("eos_token", "</s>"),
    ("eos_token", "<|endoftext|>"),
    ("pad_token", "<pad>"),
    ("pad_token", "<|reserved_special_token_250|>"),
    ("mask_token", "[MASK]"),
    ("unk_token", "[unused99]"),
    ("special_tokens", ["<|im_start|>", "<|im_end|>", "▁"]),
    ("stop_tokens", ["\n\n", "Question:", "###"]),
    ("token", "positive"),
    ("token", "<image>"),
    ("answer_token", "yes"),
    ("tokenizer", "Qwen/Qwen3-0.6B"),
    ("monkey", "see123456789012345do"),
    ("api_key_env", "WANDB_API_KEY"),
    ("api_key", "WANDB_API_KEY"),
    ("api_key", "$WANDB_API_KEY"),
    ("api_key", "${oc.env:WANDB_API_KEY}"),
    ("api_key", "EMPTY"),
    ("api_key", None),
    ("password", ""),
    ("password", 1234),
    ("use_auth_token", True),
    ("hub_token", "<HUB_TOKEN>"),
    ("token_file", "abc123def456"),
    ("auth_token", "/run/secrets/token"),
    ("secret", "~/.config/key"),
    ("ssh_key", "keys/id_ed25519.pub"),
    ("private_key", "https://vault.example.org/v1/x"),
    ("public_key", "AAAAC3NzaC1lZDI1NTE5AAAAIGz8"),
    ("language", "sk-SK"),
    ("model", "sk-learn-random-forest-classifier-baseline"),
    ("path", "hf_transformers_models_directory_with_a_long_name"),
    ("address", "http://head:8265/user@example"),
    ("address", "http://[::1]:8265/"),
    ("prompt", "The password: is hidden. Question: {question} Answer:"),
    ("proxy", "http://user:$PASSWORD@proxy:3128"),
    ("lr", "1e-5"),
]


@pytest.mark.parametrize(("name", "value"), PLAIN)
def test_numbers_paths_digests_words_and_references_are_no_credentials(name: str, value: object) -> None:
    assert not [*found_in({name: value})]


@pytest.mark.parametrize(
    "line",
    [
        "export TOKEN=hunter2",
        "export TOKEN=letmein",
        "export HF_TOKEN='abc def'",
        f"python t.py --wandb-api-key {HEX}",
        f"python t.py --api_key={HEX} --lr 1",
        f"sbatch --export=ALL,WANDB_API_KEY={HEX} x",
        "curl -H 'Authorization: Bearer abcdefghijklmnop12' x",
        "git clone https://me:hunter2@git.example.org/x",
        "mysql --password hunter2",
        "export API_KEY=my_secret_key",
        "run --api-key my_secret_key",
        "PGPASSWORD=hunter2 psql",
        "export DB_PASS=hunter2 MYSQL_PWD=$X",
        "curl -u me:hunter2 http://h",
        "curl -s --proxy-user 'me:hunter2' http://h",
        "curl -x me:hunter2@proxy:8080 http://h",
        "sshpass -p hunter2 ssh h",
        "docker login -u me -p hunter2 registry",
        "mysql -u root -p'hunter2'",
        f"wandb login --relogin {HEX}",
        f"echo machine api.wandb.ai login user password {HEX} >> ~/.netrc",
    ],
)
def test_a_shell_line_that_sets_a_credential_is_found(line: str) -> None:
    assert line_reason(line)
    clean = redacted(line)
    assert "***" in clean and "hunter2" not in clean and HEX not in clean
    assert [*found_in({"setup": [line]})] and [*found_in({"x": [line]}, shell=True)]


@pytest.mark.parametrize(
    "line",
    [
        "module load cuda/12.6",
        "export TOKENIZERS_PARALLELISM=false",
        "export HF_TOKEN=$(cat ~/.hf_token)",
        "export WANDB_API_KEY=$KEY HF_TOKEN_PATH=/x",
        "source ~/.secrets",
        "python t.py --api-key $KEY --max-new-tokens 5 --sort-key loss --pad_token=<pad>",
        "export NCCL_SOCKET_IFNAME=ib0 OMP_NUM_THREADS=4",
        "python t.py --token-file x --key {config.key}",
        "curl -u $USER:$PASS http://h:8080/x",
        "curl -x proxy:8080 http://h -u me",
        "mysql -p -u root",
        "sshpass -p $PW ssh h",
        "docker run -p 8080:80 x && docker login --password-stdin",
        "wandb login",
        "PWD=build make compass=north bypass=never first_pass=greedy",
        "python -c 'c = Client(api_key=api_key, token=hf_token); password = getpass()'",
    ],
)
def test_a_shell_line_without_one_is_fine(line: str) -> None:
    assert not line_reason(line) and redacted(line) == line


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("ValueError: bad api_key='hunter2'", "ValueError: bad api_key='***'"),
        ('{"password": "a b", "n": 1}', '{"password": "***", "n": 1}'),
        ("the token expired password=abc", "the token expired password=***"),
        ("+  api_key: abcdef  # old", "+  api_key: ***  # old"),
        ("+api_key = os.environ['X']", "+api_key = os.environ['X']"),
        ("machine h login me password hunter2", "machine h login me password ***"),
        ("GET https://me:pw1@h/x failed", "GET https://me:***@h/x failed"),
        ('X["API_KEY"] = secret = "hunter2"', 'X["API_KEY"] = secret = "***"'),
        ('connect(authkey=b"guess")', 'connect(authkey=b"***")'),
        ("usage: sweep rerun KEY=VALUE", "usage: sweep rerun KEY=VALUE"),
        ("KeyError: 'token'", "KeyError: 'token'"),
        ("pad_token=<pad> num_tokens: 5 sort_key=loss", "pad_token=<pad> num_tokens: 5 sort_key=loss"),
        (f"+{PEM}\n+next", "+***\n+next"),
        ("a -----BEGIN PRIVATE KEY----- line was expected", "a *** line was expected"),
    ],
)
def test_texts_are_redacted_and_what_is_no_credential_stays(text: str, clean: str) -> None:
    assert redacted(text) == clean


def test_what_the_environment_holds_is_found_wherever_it_turns_up() -> None:
    known = known_values(
        {
            "MY_SECRET": "zebra-zebra-9",
            "HOME": "/root/zebra-9",
            "DB_PASSWORD": "password",
            "HF_TOKEN": "short",
        }
    )
    assert known == {"zebra-zebra-9"}
    assert redacted("it has zebra-zebra-9 in it", known) == "it has *** in it"
    assert [*found_in({"note": "x zebra-zebra-9"}, known=known)] == [
        ("note", "a credential of the environment")
    ]


def test_a_config_of_before_is_masked_and_else_the_same() -> None:
    tree = {"wandb": {"api_key": HEX, "n": 1}, "urls": ["http://a:b@c", "x"], "lr": 0.1}
    assert masked(tree) == {"wandb": {"api_key": "***", "n": 1}, "urls": ["***", "x"], "lr": 0.1}


@pytest.mark.parametrize(
    "unit", ["://", "sk-", "a", "-----BEGIN PRIVATE KEY-----", "key=", "token ", "curl -u ", "# "]
)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    start_s = time.process_time()
    redacted(unit * (100_000 // len(unit)))
    assert time.process_time() - start_s < 10  # usually 0.5


@pytest.mark.parametrize(
    "line",
    [
        "apptainer exec docker://python:3.12-slim@sha256:" + "0a" * 32 + " python train.py",
        "curl http://h:8000?x=a@b",
        "curl http://localhost:$PORT/v1/x@main",
        "export HF_TOKEN=`cat ~/.hf`",
    ],
)
def test_addresses_and_references_that_only_look_like_a_password_pass(line: str) -> None:
    assert not line_reason(line)


def test_an_option_and_its_value_as_two_items_are_found() -> None:
    assert [*found_in({"args": ["--api-key", "Zx9Qw7Er5Ty3Ui1Op0"]})]
    assert not [*found_in({"args": ["--max-new-tokens", "512", "--tokenizer", "gpt2"]})]


def test_a_credential_is_found_where_name_and_value_are_two_settings() -> None:
    tree = {"env": [{"name": "SEED", "value": "3"}, {"name": "API_KEY", "value": "letmein"}]}
    assert [key for key, _ in found_in(tree)] == ["env.value"]


def test_passwords_by_user_are_found_and_what_is_beside_them_is_none() -> None:
    tree = {"passwords": {"alice": "x9Kd8s7dHJ", "tries": 3}, "secrets": {"backend": "vault"}}
    assert [key for key, _ in found_in(tree)] == ["passwords.alice"]


SETTINGS = """# Addresses are credentials: they stay in the environment. The token: see above.
"description": "``KEY={checkpoint}``, set in an attempt that resumes"
api_key: ${oc.env:WANDB_API_KEY}   # the key: never in this file
url: https://user:password@host/   # secret: as always
// password: as always
  ;; password: as always
note: "it's" # password: as always
sort_key: loss
remote: https://my-organisation-2024-team@dev.azure.com/org/proj
host: ssh://ec2-user-1234567890-abcdef@host
"""
SECRETS = """#api_key: letmein
# password: hunter2
api_key: letmein  # the key
lr: 1  # export TOKEN=a1b2c3d4e5f6
url: https://me:hunter2@host/
cd /x ; export DB_PASSWORD=correcthorse
apt update ; sshpass -p hunter2 ssh a@b
PASSWORD = "foo # barbaz"
PASSWORD = "foo // barbaz"
PASSWORD = "foo \\" # barbaz"
"it's"; PASSWORD = 'foo # barbaz'
url: https://7k3m9x2p4q8r5t6w1z0a@host/
url: ssh://f47ac10b-58cc-4372-a567-0e02b2c3d479@host/
"""


def test_prose_placeholders_and_examples_in_files_are_no_credentials_and_real_ones_are_found() -> None:
    assert not [*lines_with(SETTINGS, by_name=True)]
    assert [number for number, _ in lines_with(SECRETS, by_name=True)] == [*range(1, 14)]
    assert [number for number, _ in lines_with(SECRETS, by_name=False)] == [5, 12, 13]
    assert [*found_in({"url": "https://user:password@host/"})]  # where it is a setting it would be used


@pytest.mark.parametrize("folder", ["conf", "schema", "orchestrator"])
def test_no_file_of_this_project_looks_like_a_credential(folder: str) -> None:
    for path in (Path(__file__).parents[2] / folder).rglob("*.*"):
        if path.suffix in (".json", ".py", ".yaml"):
            text = path.read_text(encoding="utf-8")
            assert not [*lines_with(text, by_name=path.suffix != ".py")], path
