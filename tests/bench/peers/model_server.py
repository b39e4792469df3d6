"""all-MiniLM-L6-v2 behind an OpenAI-compatible /v1/embeddings, for what has no model of its own. Loopback only.

`python model_server.py PORT MODEL THREADS`: the socket is open before the model is loaded, so that whoever calls waits.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers one request at a time: there is one model."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
        vectors = MODEL.encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist()
        answer = {
            "object": "list",
            "model": request["model"],
            "data": [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(int(sys.argv[3]))
    MODEL = SentenceTransformer(sys.argv[2], device="cpu")
    server.serve_forever()
