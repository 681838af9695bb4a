"""Print the chat templates that the installed unsloth carries, as JSON: {name: [template, eos token]}.

Run in the environment of templates/sft.py: importing them needs torch.
"""

import json
import sys

from unsloth.chat_templates import CHAT_TEMPLATES

json.dump({name: [entry[0], entry[1]] for name, entry in CHAT_TEMPLATES.items()}, sys.stdout)
