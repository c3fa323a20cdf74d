// Plays scenarios with the official Node SDK; tests/support/node_client.py is at the other end.
//
// Lines of JSON on standard input: first the endpoint, then one for each scenario. Lines of JSON on standard output:
// {"result"} or {"error"} for each scenario, and in between {"ask"} for what only the test can do (the gates of the
// model, for instance), which is answered by {"reply"}.

import { createInterface } from "node:readline";
import { scenarios } from "./scenarios.mjs";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function receive() {
    const { value, done } = await lines.next();
    return done ? undefined : JSON.parse(value);
}

function send(message) {
    process.stdout.write(JSON.stringify(message) + "\n");
}

// Scenarios may ask at the same time; the questions are put one after the other.
let turn = Promise.resolve();
function ask(what, ...given) {
    const answer = turn.then(async () => {
        send({ ask: what, arguments: given });
        return (await receive()).reply;
    });
    turn = answer.catch(() => {});
    return answer;
}

const endpoint = await receive();
for (let request; (request = await receive()) !== undefined; ) {
    try {
        send({ result: (await scenarios[request.scenario]({ ...endpoint, ...request.options }, ask)) ?? null });
    } catch (error) {
        send({ error: String(error?.stack ?? error) });
    }
}
