"""A Hugging Face Hub for tests, on loopback: repositories, Xet, buckets, and Jobs that really run.

The real clients talk to it through `HF_ENDPOINT`:

    with Hub(tmp_path) as hub:
        hub.add_user("ada", token="hf_ada")
        hub.add_repo("ada/tiny", folder)
        subprocess.run(["hf", "models", "ls"], env={**os.environ, **hub.env(token="hf_ada")})
"""

from .accounts import Organization
from .server import Hub

__all__ = ["Hub", "Organization"]
