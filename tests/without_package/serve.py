"""An endpoint: a published folder's handler, loaded as the server does it, answers requests.

FOLDER REQUESTS (as a JSON list); prints the answers as JSON.
"""

import json
import sys
from pathlib import Path

import refuse  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))

from endpoint_server import load_handler

handler = load_handler(Path(sys.argv[1]))
print(json.dumps([handler(body) for body in json.loads(sys.argv[2])], allow_nan=False))
