"""Speaks as much of the CLI's protocol as a pool needs, and misbehaves as `FAKE` (a JSON object) tells it.

held_while: it does not listen while this file exists. start_work: seconds of processor time before it listens.
broken_while: it does not start while this file exists. protocol: the version it claims. silent_on: a method it never
answers. dies_on: a method at which it ends; dies_after: the same, answered before. fails_turns: turns end in an error.
busy_on: a method at which it works for ever and answers nothing any more. stubborn: it does not end when asked to.
started: a directory in which each start leaves a file.
"""

import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import Any

#: Held while an answer is made.
LOCK = threading.Lock()
FAKE = json.loads(os.environ.get("FAKE", "{}"))


def main() -> None:
    if "started" in FAKE:
        pathlib.Path(FAKE["started"], str(os.getpid())).touch()
    if FAKE.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.path.exists(FAKE.get("broken_while", "/nonexistent")):
        print("no: the library libbroken.so is missing", file=sys.stderr)
        sys.exit(1)
    while os.path.exists(FAKE.get("held_while", "/nonexistent")):
        time.sleep(0.005)
    while time.process_time() < FAKE.get("start_work", 0):
        pass
    server = socket.create_server(("127.0.0.1", 0))
    print(f"CLI server listening on port {server.getsockname()[1]}", flush=True)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as stream:
        while line := stream.readline():
            length = int(line.partition(b":")[2])
            stream.readline()
            answer(connection, json.loads(stream.read(length)))


def answer(connection: socket.socket, request: dict[str, Any]) -> None:
    method, params = request["method"], request["params"]
    if method == FAKE.get("dies_on"):
        print(f"died on {method}", flush=True)
        os._exit(7)
    if method == FAKE.get("busy_on"):
        with LOCK:
            while True:
                pass
    if method == FAKE.get("silent_on"):
        return
    with LOCK:
        send(connection, {"id": request["id"], "result": result(method, params)})
    if method == FAKE.get("dies_after"):
        os._exit(7)
    if method == "session.send":
        if FAKE.get("fails_turns"):
            event(connection, params, "session.error", {"message": "no model today"})
        else:
            event(connection, params, "assistant.message", {"content": "ready"})
        event(connection, params, "session.idle", {})
    if method == "runtime.shutdown" and not FAKE.get("stubborn"):
        os._exit(0)


def result(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "connect":
        assert params["token"] == os.environ["COPILOT_CONNECTION_TOKEN"]
        return {"ok": True, "protocolVersion": FAKE.get("protocol", 3), "version": "1.0.102"}
    if method == "session.send":
        return {"messageId": "m1"}
    return {"success": True}


def event(connection: socket.socket, params: dict[str, Any], type_: str, data: dict[str, Any]) -> None:
    written = {"type": type_, "id": type_, "data": data}
    send(connection, {"method": "session.event", "params": {"sessionId": params["sessionId"], "event": written}})


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    body = json.dumps({"jsonrpc": "2.0", **message}).encode()
    connection.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))


main()
