// A client of the official Node SDK, told what to do in lines of JSON; aerodrome.bench.node_sdk is at the other end.
//
// {"do": "open", "name", "address", "token", "tools", "model", "provider"?}, then "ping", "create", "forget" and "turn"
// by that name. Each is answered by a line: {} or {"error"}.

import { createInterface } from "node:readline";
import { CopilotClient, RuntimeConnection, approveAll } from "@github/copilot-sdk";

const clients = new Map();

const commands = {
    async open({ name, address, token, tools, model, provider }) {
        const connection = RuntimeConnection.forUri(address, { connectionToken: token });
        const sdk = new CopilotClient({ connection, mode: "empty" });
        const config = { model, availableTools: tools, streaming: false, onPermissionRequest: approveAll };
        if (provider) config.provider = provider;
        clients.set(name, { sdk, config, owned: !provider, session: await sdk.createSession(config), others: [] });
    },
    async ping({ name }) {
        await clients.get(name).sdk.ping();
    },
    async create({ name }) {
        const { sdk, config, others } = clients.get(name);
        others.push(await sdk.createSession(config));
    },
    // As SdkSession.forget in sdk.py.
    async forget({ name }) {
        const { sdk, owned, others } = clients.get(name);
        for (const session of others.splice(0)) {
            await session.disconnect();
            if (owned) await sdk.deleteSession(session.sessionId);
        }
    },
    async turn({ name, prompt }) {
        await clients.get(name).session.sendAndWait({ prompt });
    },
};

for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    let answer = {};
    try {
        await commands[command.do](command);
    } catch (error) {
        answer = { error: String(error?.message ?? error) };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
}
for (const { sdk } of clients.values()) await sdk.stop();
process.exit(0);
