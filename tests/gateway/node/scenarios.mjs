// What is done with the SDK, a function each: (endpoint and options, ask) -> what the test compares.

import { CopilotClient, RuntimeConnection, defineTool } from "@github/copilot-sdk";

const CALL = '[[tool: look {"x": "there"}]]';
const APPROVE = { kind: "approve-once" };

// A client, and sessions with the events that they have seen.
class Client {
    constructor({ address, token, provider, mode = "empty", ...options }) {
        this.mode = mode;
        this.credentials = provider ? { provider } : {};
        this.chats = [];
        const connection = RuntimeConnection.forUri(address, { connectionToken: options.wrongToken ?? token });
        this.sdk = new CopilotClient({ connection, mode, onGetTraceContext: options.onGetTraceContext });
    }

    #options(chat, config) {
        const tools = this.mode === "empty" ? { availableTools: ["builtin:ask_user", "custom:*"] } : {};
        return { ...tools, ...this.credentials, onEvent: (event) => chat.take(event), ...config };
    }

    async create(config = {}) {
        const chat = new Chat();
        chat.session = await this.sdk.createSession(this.#options(chat, { model: "gpt-4.1", ...config }));
        this.chats.push(chat);
        return chat;
    }

    async resume(id, config = {}) {
        const chat = new Chat();
        chat.session = await this.sdk.resumeSession(id, this.#options(chat, config));
        this.chats.push(chat);
        return chat;
    }
}

class Chat {
    events = [];
    #waiting = new Set();

    get id() {
        return this.session.sessionId;
    }

    take(event) {
        this.events.push(event);
        for (const check of [...this.#waiting]) check();
    }

    data(type) {
        return this.events.filter((event) => event.type === type).map((event) => event.data);
    }

    // Without a deadline: the test has one for the whole scenario.
    until(type) {
        return new Promise((resolve) => {
            const check = () => {
                const [found] = this.data(type);
                if (found === undefined) return;
                this.#waiting.delete(check);
                resolve(found);
            };
            this.#waiting.add(check);
            check();
        });
    }

    async send(prompt, options = {}) {
        this.events = [];
        return await this.session.send({ prompt, ...options });
    }

    async turn(prompt, options = {}) {
        await this.send(prompt, options);
        await this.until("session.idle");
        return this.answer;
    }

    get answer() {
        return this.data("assistant.message").map(({ content }) => content).filter(Boolean).at(-1);
    }

    async promptsSeen() {
        return JSON.parse(await this.turn("[[turns]]")).slice(0, -1);
    }

    async history() {
        const said = (await this.session.getEvents()).filter((event) => /^(user|assistant)\.message$/.test(event.type));
        return said.map(({ data }) => data.content).filter(Boolean);
    }
}

// A scenario with one client, or with two, which are stopped behind it.
function withClients(play) {
    return async (options, ask) => {
        const clients = [];
        const connect = async (more = {}) => {
            const client = new Client({ ...options, ...more });
            clients.push(client);
            await client.sdk.start();
            return client;
        };
        try {
            return await play(connect, ask, options);
        } finally {
            const errors = (await Promise.all(clients.map(({ sdk }) => sdk.stop()))).flat();
            if (errors.length) throw new AggregateError(errors, errors.map(String).join("; "));
        }
    };
}

function withClient(play) {
    return withClients(async (connect, ask, options) => await play(await connect(), ask, options));
}

// A tool that runs without asking for permission, unless told otherwise.
function tool(name = "look", handler = async ({ x }) => `${name} got ${x}`, more = { skipPermission: true }) {
    const parameters = { type: "object", properties: { x: { type: "string" } }, required: ["x"] };
    return defineTool(name, { description: `Does ${name}`, parameters, handler, ...more });
}

function fault(error) {
    return { code: error.code ?? null, message: error.message };
}

async function failure(promise) {
    try {
        await promise;
    } catch (error) {
        return fault(error);
    }
    throw new Error("it did not fail");
}

function systemMessage({ messages }) {
    return messages.filter(({ role }) => role === "system").map(({ content }) => content).join("\n");
}

const turns = {
    turn: withClient(async (client, ask, { mode }) => {
        const chat = await client.create();
        const id = await chat.send(`hello from node, ${mode}`);
        await chat.until("session.idle");
        const [asked] = chat.data("user.message");
        const [answered] = chat.data("assistant.message");
        const [request] = await ask("requests", `hello from node, ${mode}`);
        return {
            answer: answered.content,
            sameIds: asked.messageId === id && answered.originatingMessageId === id,
            model: request.model,
        };
    }),

    sendAndWait: withClient(async (client) => {
        const chat = await client.create();
        return (await chat.session.sendAndWait("to be waited for")).data.content;
    }),

    streaming: withClient(async (client, ask) => {
        const chat = await client.create({ streaming: true });
        await chat.send("[[gate-stream: node-stream]] one two three four");
        const first = await chat.until("assistant.message_delta");
        await ask("openGate", "node-stream");
        await chat.until("session.idle");
        const deltas = chat.data("assistant.message_delta").map(({ deltaContent }) => deltaContent);
        return { first: first.deltaContent, deltas: deltas.length, joined: deltas.join(""), answer: chat.answer };
    }),

    abort: withClient(async (client, ask) => {
        const chat = await client.create({ streaming: true });
        await chat.send("[[gate-stream: node-abort]] never to be finished");
        await ask("gateReached", "node-abort");
        await chat.session.abort();
        const { aborted } = await chat.until("session.idle");
        await ask("gateLeft", "node-abort");
        return { aborted, answers: chat.data("assistant.message").length, next: await chat.turn("and now?") };
    }),

    steering: withClient(async (client, ask) => {
        const chat = await client.create();
        await chat.send("[[gate: node-busy]] the first");
        await ask("gateReached", "node-busy");
        await chat.session.send({ prompt: "queued behind", mode: "enqueue" });
        await chat.session.send({ prompt: "steered into", mode: "immediate" });
        const { items, steeringMessages } = await chat.session.rpc.queue.pendingItems();
        await ask("openGate", "node-busy");
        await chat.until("session.idle");
        return {
            pending: [items.map(({ displayText }) => displayText), steeringMessages],
            asked: chat.data("user.message").map(({ content }) => content),
            answered: chat.data("assistant.message").map(({ content }) => content),
        };
    }),

    usage: withClient(async (client) => {
        const chat = await client.create();
        await chat.turn("count me in");
        const [{ model, outputTokens, inputTokens }] = chat.data("assistant.usage");
        return { model, outputTokens, inputTokens: inputTokens > 100 };
    }),

    blob: withClient(async (client) => {
        const chat = await client.create();
        const data = Buffer.from("the attached words").toString("base64");
        const blob = { type: "blob", mimeType: "text/plain", displayName: "note.txt", data };
        return (await chat.turn("look at this", { attachments: [blob] })).includes("the attached words");
    }),

    requestHeaders: withClient(async (client, ask) => {
        const chat = await client.create();
        await chat.turn("a header from node", { requestHeaders: { "x-conformance": "yes" } });
        return (await ask("requests", "a header from node"))[0].headers["x-conformance"];
    }),

    systemMessage: withClient(async (client, ask, { config, prompt }) => {
        const chat = await client.create({ systemMessage: config });
        await chat.turn(prompt);
        const sent = systemMessage((await ask("requests", prompt))[0]);
        return ["FROM-NODE", "# Tone and style", "# TONE AND STYLE"].filter((text) => sent.includes(text));
    }),

    transform: withClient(async (client, ask) => {
        const tone = { action: (content) => content.toUpperCase() };
        const chat = await client.create({ systemMessage: { mode: "customize", sections: { tone } } });
        await chat.turn("transformed by node");
        const sent = systemMessage((await ask("requests", "transformed by node"))[0]);
        return ["# Tone and style", "# TONE AND STYLE"].filter((text) => sent.includes(text));
    }),

    modelSwitch: withClient(async (client, ask) => {
        const chat = await client.create();
        await chat.turn("before node switched");
        await chat.session.setModel("gpt-4.1-mini");
        await chat.turn("after node switched");
        const requests = [...(await ask("requests", "before node switched")), ...(await ask("requests", "after node switched"))];
        return { sent: requests.map(({ model }) => model), current: (await chat.session.rpc.model.getCurrent()).modelId };
    }),

    mode: withClient(async (client) => {
        const chat = await client.create();
        const before = await chat.session.rpc.mode.get();
        await chat.session.rpc.mode.set({ mode: "plan" });
        return [before, await chat.session.rpc.mode.get()];
    }),

    failingModel: withClient(async (client) => {
        const chat = await client.create();
        await chat.send("[[fail: 400]] refused");
        const { message } = await chat.until("session.error");
        await chat.until("session.idle");
        return { told: message.includes("400"), next: await chat.turn("better") };
    }),

    traceContext: withClients(async (connect, ask) => {
        const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let asked = 0;
        const client = await connect({ onGetTraceContext: () => ((asked += 1), { traceparent, tracestate: "a=b" }) });
        const chat = await client.create();
        const answer = await chat.turn("traced");
        await chat.session.disconnect();
        await client.resume(chat.id);
        return { answer, asked };
    }),
};

const callbacks = {
    tool: withClient(async (client, ask, { mode }) => {
        const chat = await client.create({ tools: [tool()] });
        const answer = await chat.turn(`${CALL} node ${mode}`);
        const [opening] = await ask("requests", `${CALL} node ${mode}`);
        return { answer, offered: opening.tools.includes("look"), success: chat.data("tool.execution_complete")[0].success };
    }),

    toolFailure: withClient(async (client) => {
        const fail = async () => ({ textResultForLlm: "the disk is full", resultType: "failure", error: "ENOSPC" });
        const chat = await client.create({ tools: [tool("look", fail)] });
        return { answer: await chat.turn(CALL), success: chat.data("tool.execution_complete")[0].success };
    }),

    toolThrows: withClient(async (client) => {
        const boom = async () => {
            throw new Error("out of order");
        };
        const chat = await client.create({ tools: [tool("look", boom)] });
        return { answer: await chat.turn(CALL), next: await chat.turn("go on") };
    }),

    permission: withClient(async (client, ask, { decision }) => {
        const asked = [];
        const onPermissionRequest = ({ kind, toolName, args }) => {
            asked.push([kind, toolName, args]);
            return decision;
        };
        const chat = await client.create({ tools: [tool("look", undefined, {})], onPermissionRequest });
        const answer = await chat.turn(CALL);
        return { answer, asked, result: chat.data("permission.completed")[0].result.kind };
    }),

    permissionOfAnother: withClients(async (connect) => {
        const [first, second] = [await connect(), await connect()];
        const none = () => ({ kind: "no-result" });
        const one = await first.create({ tools: [tool("look", undefined, {})], onPermissionRequest: none });
        await second.resume(one.id, { onPermissionRequest: () => APPROVE });
        return await one.turn(CALL);
    }),

    userInput: withClient(async (client) => {
        const questions = [];
        const onUserInputRequest = async ({ question, choices }) => {
            questions.push([question, choices]);
            return { answer: "blue", wasFreeform: false };
        };
        const chat = await client.create({ onUserInputRequest });
        const answer = await chat.turn('[[tool: ask_user {"question": "Which colour?", "choices": ["red", "blue"]}]]');
        return { answer, questions };
    }),

    elicitation: withClient(async (client) => {
        const forms = [];
        const onElicitationRequest = async ({ message }) => {
            forms.push(message);
            return { action: "accept", content: { confirmed: true } };
        };
        const chat = await client.create({ onElicitationRequest });
        const able = chat.session.capabilities.ui.elicitation;
        return { able, confirmed: await chat.session.ui.confirm("Deploy?"), forms };
    }),

    modelElicits: withClient(async (client) => {
        const onElicitationRequest = async () => ({ action: "accept", content: { colour: "red" } });
        const onUserInputRequest = async () => ({ answer: "unused", wasFreeform: true });
        const chat = await client.create({ askUserVariant: "elicitation", onElicitationRequest, onUserInputRequest });
        const given = { message: "Which?", requestedSchema: { type: "object", properties: { colour: { type: "string" } } } };
        return (await chat.turn(`[[tool: ask_user ${JSON.stringify(given)}]]`)).includes("red");
    }),

    plan: withClient(async (client) => {
        const plans = [];
        const onExitPlanModeRequest = async ({ summary }) => {
            plans.push(summary);
            return { approved: true, selectedAction: "interactive" };
        };
        const chat = await client.create({ onExitPlanModeRequest, availableTools: ["builtin:exit_plan_mode"] });
        await chat.session.rpc.mode.set({ mode: "plan" });
        await chat.turn('[[tool: exit_plan_mode {"summary": "first this"}]]');
        return { plans, mode: await chat.session.rpc.mode.get() };
    }),

    hooks: withClient(async (client) => {
        const seen = [];
        const names = [
            ...["onSessionStart", "onUserPromptSubmitted", "onUserPromptTransformed", "onPreToolUse", "onPostToolUse"],
            ...["onAgentStop", "onSessionEnd"],
        ];
        const hooks = Object.fromEntries(names.map((name) => [name, async () => void seen.push(name)]));
        const chat = await client.create({ tools: [tool()], hooks });
        await chat.turn(CALL);
        await chat.session.disconnect();
        return seen;
    }),

    hookDenies: withClient(async (client) => {
        const onPreToolUse = async () => ({ permissionDecision: "deny", permissionDecisionReason: "not today" });
        const chat = await client.create({ tools: [tool()], hooks: { onPreToolUse } });
        const answer = await chat.turn(CALL);
        return { told: answer.includes("not today"), calls: chat.data("external_tool.requested").length };
    }),

    hookChanges: withClient(async (client) => {
        const onPreToolUse = async () => ({ modifiedArgs: { x: "elsewhere" } });
        const onPostToolUse = async ({ toolResult }) => ({
            modifiedResult: { ...toolResult, textResultForLlm: `${toolResult.textResultForLlm}!` },
        });
        const onUserPromptSubmitted = async ({ prompt }) => ({ modifiedPrompt: prompt.replace("cats", "dogs") });
        const chat = await client.create({ tools: [tool()], hooks: { onPreToolUse, onPostToolUse, onUserPromptSubmitted } });
        return [await chat.turn(CALL), await chat.turn("about cats")];
    }),

    agents: withClient(async (client, ask) => {
        const gardener = { name: "gardener", description: "Gardens", prompt: "You are a GARDENER.", infer: true };
        const availableTools = ["builtin:task"];
        const chat = await client.create({ customAgents: [gardener], agent: "gardener", availableTools });
        const { agents } = await chat.session.rpc.agent.list();
        await chat.turn("as a gardener of node");
        await chat.session.rpc.agent.deselect();
        const task = { agent_type: "gardener", name: "dig", description: "d", prompt: "dig [[say: a hole]] for node" };
        const answer = await chat.turn(`[[tool: task ${JSON.stringify(task)}]]`);
        const prompts = ["as a gardener of node", "dig [[say: a hole]] for node"];
        const requests = await Promise.all(prompts.map((prompt) => ask("requests", prompt)));
        return {
            listed: agents.map(({ name }) => name),
            answer,
            prompted: requests.map(([request]) => JSON.stringify(request.messages).includes("GARDENER")),
        };
    }),
};

const sessions = {
    status: withClient(async ({ sdk }) => ({
        ping: await sdk.ping("are you there?").then(({ message, protocolVersion }) => [message, protocolVersion]),
        status: await sdk.getStatus(),
        auth: await sdk.getAuthStatus(),
        models: await sdk.listModels().then((models) => models.map(({ id }) => id), fault),
    })),

    wrongToken: async (options) => {
        const client = new Client({ ...options, wrongToken: "guessed" });
        try {
            return await failure(client.sdk.start());
        } finally {
            await client.sdk.forceStop();
        }
    },

    find: withClient(async (client) => {
        const chat = await client.create();
        await chat.turn("the title of it");
        // Who runs it writes this down behind what happens, and in between the two questions it may have changed.
        let listed, same;
        do {
            [listed] = (await client.sdk.listSessions()).filter(({ sessionId }) => sessionId === chat.id);
            same = JSON.stringify(listed) === JSON.stringify(await client.sdk.getSessionMetadata(chat.id));
        } while (!same || !listed.summary);
        return {
            summary: listed.summary,
            same,
            last: (await client.sdk.getLastSessionId()) === chat.id,
            unknown: (await client.sdk.getSessionMetadata("no-such-session")) ?? null,
        };
    }),

    unknown: withClient(async (client) => ({
        resume: await failure(client.resume("no-such-session")),
        delete: await failure(client.sdk.deleteSession("no-such-session")),
    })),

    delete: withClient(async (client) => {
        const told = [];
        let deleted;
        const heard = new Promise((resolve) => (deleted = resolve));
        client.sdk.onLifecycle(({ type, sessionId }) => {
            if (sessionId !== chat?.id) return;
            told.push(type);
            if (type === "session.deleted") deleted();
        });
        let chat = await client.create();
        await chat.turn("to be deleted");
        await chat.session.disconnect();
        await client.sdk.deleteSession(chat.id);
        await heard;
        return {
            told: [...new Set(told)].filter((type) => type !== "session.created").sort(),
            metadata: (await client.sdk.getSessionMetadata(chat.id)) ?? null,
            resume: (await failure(client.resume(chat.id))).message.replace(chat.id, "ID"),
        };
    }),

    history: withClient(async (client) => {
        const chat = await client.create();
        await chat.turn("one");
        await chat.turn("two");
        await chat.session.log("half-way through", { level: "warning" });
        const types = (await chat.session.getEvents()).map(({ type }) => type);
        return { first: types[0], said: await chat.history(), noted: types.includes("session.warning") };
    }),

    resume: withClients(async (connect, ask, { mode }) => {
        const [first, second] = [await connect({ mode }), await connect({ mode })];
        const chat = await first.create();
        await chat.turn("my first words");
        await chat.session.disconnect();
        const resumed = await second.resume(chat.id);
        await resumed.until("session.resume");
        const replayed = resumed.data("user.message").length;
        return { replayed, history: await resumed.history(), seen: await resumed.promptsSeen() };
    }),

    compact: withClient(async (client) => {
        const chat = await client.create();
        await chat.turn("long ago");
        await chat.turn("yesterday");
        const { success, messagesRemoved } = await chat.session.rpc.history.compact();
        const [summary, ...others] = await chat.promptsSeen();
        return { success, removed: messagesRemoved > 0, told: summary.includes("long ago"), others };
    }),

    fork: withClient(async (client) => {
        const chat = await client.create();
        await chat.turn("common past");
        const { sessionId, name } = await client.sdk.rpc.sessions.fork({ sessionId: chat.id, name: "the other way" });
        await chat.turn("only here");
        return { name, seen: await (await client.resume(sessionId)).promptsSeen() };
    }),

    twoClients: withClients(async (connect) => {
        const [first, second] = [await connect(), await connect()];
        const one = await first.create({ streaming: true });
        const two = await second.resume(one.id);
        two.events = [];
        await one.turn("for both to see");
        await two.until("session.idle");
        // Since the prompt: what the resume is followed by may come before it to one client alone.
        const begin = ({ events }) => events.findIndex(({ type }) => type === "user.message");
        const ids = (chat) => JSON.stringify(chat.events.slice(begin(chat)).map(({ id }) => id));
        const same = ids(one) === ids(two);
        await two.session.disconnect();
        return { same, answer: two.answer, alone: await one.turn("are you still there?") };
    }),

    vanishing: withClients(async (connect, ask) => {
        const [first, second] = [await connect(), await connect()];
        const one = await first.create();
        const two = await second.resume(one.id);
        await one.send("[[gate: node-vanish]] who hears me?");
        await ask("gateReached", "node-vanish");
        await first.sdk.forceStop();
        await ask("openGate", "node-vanish");
        await two.until("session.idle");
        return two.answer;
    }),

    toolOwner: withClients(async (connect) => {
        const [first, second] = [await connect(), await connect()];
        const one = await first.create({ tools: [tool()] });
        const two = await second.resume(one.id, { tools: [tool("listen")] });
        return {
            both: await two.turn(`${CALL} [[tool: listen {"x": "here"}]]`),
            clash: (await failure(second.resume(one.id, { tools: [tool()] }))).message,
        };
    }),
};

// Everything once, for the record of what goes over the wire; "step" tells its reader where it is.
async function record(options, ask) {
    const onGetTraceContext = () => ({ traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" });
    const client = new Client({ ...options, onGetTraceContext });
    const { sdk } = client;
    await ask("step", "start");
    await sdk.start();
    await ask("step", "status");
    await sdk.ping("hello");
    await sdk.getStatus();
    await sdk.getAuthStatus();
    await failure(sdk.listModels());
    await ask("step", "create");
    const plain = await client.create();
    await ask("step", "send");
    await plain.turn("hello");
    await ask("step", "abort");
    await plain.session.abort();
    await ask("step", "history");
    await plain.session.getEvents();
    await ask("step", "find");
    await sdk.listSessions();
    await sdk.getSessionMetadata(plain.id);
    await sdk.getLastSessionId();
    await ask("step", "disconnect");
    await plain.session.disconnect();
    await ask("step", "resume");
    const resumed = await client.resume(plain.id);
    await resumed.turn("[[fail: 400]] refused");
    await ask("step", "delete");
    await resumed.session.disconnect();
    await sdk.deleteSession(plain.id);
    await ask("step", "create with handlers");
    const nothing = async () => undefined;
    const full = await client.create({
        streaming: true,
        tools: [tool("look", undefined, {})],
        onPermissionRequest: () => APPROVE,
        onUserInputRequest: async () => ({ answer: "blue", wasFreeform: false }),
        onElicitationRequest: async () => ({ action: "accept", content: { confirmed: true } }),
        onExitPlanModeRequest: async () => ({ approved: true, selectedAction: "interactive" }),
        systemMessage: { mode: "customize", sections: { tone: { action: (content) => content } }, content: "More." },
        hooks: {
            ...{ onSessionStart: nothing, onUserPromptSubmitted: nothing, onUserPromptTransformed: nothing },
            ...{ onPreToolUse: nothing, onPostToolUse: nothing, onAgentStop: nothing, onSessionEnd: nothing },
        },
    });
    await ask("step", "tools and questions");
    await full.turn(CALL);
    await full.turn('[[tool: ask_user {"question": "Which?", "choices": ["red", "blue"]}]]');
    await full.session.ui.confirm("Deploy?");
    await ask("step", "stop");
    await sdk.stop();
}

export const scenarios = { ...turns, ...callbacks, ...sessions, record };
