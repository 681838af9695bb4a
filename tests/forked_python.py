"""`python SCRIPT WORDS`, for the skill's commands: has SCRIPT forked from a process that has imported what it imports.

The first argument is the socket of commands.Interpreter, which made the file that runs this.
"""

import json
import os
import socket
import sys

place, script, *words = sys.argv[1:]
if os.path.basename(os.path.dirname(script)) != "scripts":
    os.execv(sys.executable, [sys.executable, script, *words])
call = {"script": script, "words": words, "cwd": os.getcwd(), "env": dict(os.environ)}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
    asked.connect(place)
    socket.send_fds(asked, [json.dumps(call).encode()], [0, 1, 2])
    code = int(asked.recv(99))
sys.exit(code if code >= 0 else 128 - code)
