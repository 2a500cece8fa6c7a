"""What `sweep data describe` says: the format with an example, what can be imported, the commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

FORMAT = """A data set is a folder:

  DIR/dataset.json                  what it is: task, ids of each split, seed, origin of the rows, sha-256
  DIR/train/<language>.jsonl        one item a line, the same ids in every language
  DIR/validation/<language>.jsonl   optional; without it, items are set aside from train by seed
  DIR/test/<language>.jsonl
"""


class Description(NamedTuple):
    """What is special about a task's data."""

    fields: str
    example: Mapping[str, str]
    sources: str
    commands: str


DESCRIPTIONS: Mapping[str, Description] = {
    "math": Description(
        """A line of math:

  id        the same in every language
  question  the problem; it is put into the study's prompt when it is read
  answer    what the model learns to write, word for word; "" (in test) stands for the answer sentence
  gold      the number that an answer is compared with
""",
        {
            "id": "mgsm-2",
            "question": "A robe takes 2 bolts of blue fiber and half that much white fiber. "
            "How many bolts in total does it take?",
            "answer": "It takes 2/2=1 bolt of white fiber.\n"
            "So the total amount of fabric is 2+1=3 bolts of fabric.\nThe answer is 3.",
            "gold": "3",
        },
        """Sources of math:

  laihuiyuan/mCoT-MATH     from the hub; or its .json, .jsonl or .parquet files, of rows {lang-id: "en-17",
                           question, answer} or {lang, id, question, answer}. Rows without ids are aligned by
                           their place and refused unless the answers agree. Where answers differ between
                           languages, the item is left out
  juletxara/mgsm           from the hub; or a folder with mgsm_<language>.tsv: question TAB answer (test)
  GSM8K                    a folder with train.jsonl, test.jsonl: {question, answer "... #### 18"} (English)
  FOLDER                   with <language>.jsonl in the form of GSM8K or of a data set, or with folders
                           train/, validation/, test/ of them
""",
        """  sweep data import math laihuiyuan/mCoT-MATH --test juletxara/mgsm --num-train 10000 \\
      --num-validation 200 --out data/math
  sweep data import math gsm8k/ --num-validation 200 --out data/gsm8k
  sweep data check data/math --tokenizer Qwen/Qwen3-0.6B-Base
  sweep launch SWEEP data=parallel data.math_dir=data/math
""",
    ),
    "api_calling": Description(
        """A line of api_calling:

  id           the same in every language
  instruction  what is asked for, then one JSON object a line that describes an API
  input        the dialogue; it ends in "Generate API Request:"
  output       the request, as gold and as what the model learns to write; names, keys stay English
""",
        {
            "id": "GetUserToken-level-1-1.jsonl#0",
            "instruction": "Generate an API request in the format of [ApiName(key1='value1', ...)].\n"
            "The current year is 2023.\n"
            '{"name": "GetUserToken", "description": "Get the user token by username and password.", '
            '"input_parameters": {"username": {"type": "str", "description": "The username of the user."}, '
            '"password": {"type": "str", "description": "The password of the user."}}, '
            '"output_parameters": {"token": {"type": "str", "description": "The token of the user."}}}',
            "input": "User: Can you get me a token? My username is JohnDoe and my password is pass123.\n"
            "Generate API Request:\n",
            "output": "API-Request: [GetUserToken(username='JohnDoe', password='pass123')]",
        },
        """Sources of api_calling (no translated API-Bank was published; `sweep data check` holds translations
against the English rows):

  level-1-api.json         API-Bank's test rows, English: {file, id, instruction, input, expected_output}
  lv3-api-train.json       API-Bank's training rows, English: {instruction, input, output}
  FOLDER                   with <language>.json in the form of either, or with folders train/, validation/,
                           test/ of them. Rows without ids are aligned by their place
""",
        """  sweep data import api_calling translated/ --num-validation 150 --out data/api
  sweep data import api_calling train/ --test test/ --num-validation 150 --out data/api
  sweep data check data/api --tokenizer Qwen/Qwen3-0.6B-Base
  sweep launch SWEEP data=parallel data.api_calling_dir=data/api
""",
    ),
}


def describe(task: str) -> str:
    """Returns the text about a task."""
    found = DESCRIPTIONS[task]
    example = json.dumps(found.example, ensure_ascii=False)
    return f"{FORMAT}\n{found.fields}\n  {example}\n\n{found.sources}\nCommands:\n\n{found.commands}"
