// What a Node service does with its warehouse, through ClickHouse's own client for Node.
// Prints one JSON object of what it saw; `test_node_client.py` judges it.
//
// Environment: CLIENT_FOLDER (where npm installed the client), WAREHOUSE_URL, WAREHOUSE_PASSWORD.

import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";

const { CLIENT_FOLDER, WAREHOUSE_URL, WAREHOUSE_PASSWORD } = process.env;
const { createClient } = createRequire(join(CLIENT_FOLDER, "package.json"))("@clickhouse/client");

const connect = (options = {}) =>
  createClient({
    url: WAREHOUSE_URL,
    username: "default",
    password: WAREHOUSE_PASSWORD,
    request_timeout: 60_000,
    log: { level: 127 },
    ...options,
  });

const STREAMED_ROWS = 200_000;
const rows = (count) =>
  Readable.from(
    (function* () {
      for (let id = 0; id < count; id++) yield { id, name: `ñame "${id}"\n` };
    })(),
  );

const client = connect();
const results = {};

async function json(query, from = client) {
  return (await from.query({ query, format: "JSONEachRow" })).json();
}

async function table(name) {
  await client.command({ query: `create or replace table ${name} (id UInt32, name String) engine = MergeTree order by id` });
}

const tasks = {
  async ping() {
    const wrong = connect({ url: "http://127.0.0.1:1" });
    const up = await client.ping();
    // `select: true` is the ping that also tries the credentials.
    const selected = await client.ping({ select: true });
    const down = await wrong.ping();
    await wrong.close();
    return { up: up.success, selected: selected.success, down: down.success };
  },

  async selects_json() {
    const answer = await client.query({
      query: "select number as n, toString(number) as s from numbers({count: UInt8})",
      query_params: { count: 3 },
      format: "JSON",
    });
    const { rows: count, data, meta } = await answer.json();
    return { count, data, types: meta.map(({ type }) => type), query_id: answer.query_id };
  },

  async inserts_from_a_stream() {
    await table("node_stream");
    const { summary } = await client.insert({
      table: "node_stream",
      values: rows(STREAMED_ROWS),
      format: "JSONEachRow",
    });
    return { written: summary.written_rows, ...(await json("select count() as count, sum(id) as sum, any(name) like 'ñame \"%\"\\n' as text from node_stream"))[0] };
  },

  async streams_a_million_rows() {
    const answer = await client.query({
      query: "select number as n from numbers(1000000)",
      format: "JSONCompactEachRow",
    });
    let count = 0;
    let sum = 0;
    for await (const batch of answer.stream()) {
      for (const row of batch) {
        count += 1;
        sum += Number(row.json()[0]);
      }
    }
    return { count, sum };
  },

  async aborts_a_query() {
    const query_id = randomUUID();
    const abort = new AbortController();
    // An hour, unless somebody ends it.
    const outcome = client
      .query({
        query: "select sleepEachRow(1) from numbers(3600) settings max_block_size = 1, function_sleep_max_microseconds_per_block = 0",
        query_id,
        abort_signal: abort.signal,
      })
      .then((answer) => answer.text())
      .then(() => "finished", (error) => error.message);
    const running = async () =>
      Number((await json("select count() as count from system.processes where query like '%numbers(3600)%' and query not like '%system.processes%'"))[0].count);
    let before = 0;
    for (let tries = 0; tries < 100 && !before; tries++) {
      before = await running();
      await sleep(50);
    }
    abort.abort();
    const started = Date.now();
    let after = before;
    while (after && Date.now() - started < 10_000) {
      after = await running();
      await sleep(50);
    }
    return { before, after, outcome: await outcome };
  },

  async compresses_both_ways() {
    const compressing = connect({ compression: { request: true, response: true } });
    await table("node_compressed");
    const { summary } = await compressing.insert({
      table: "node_compressed",
      values: rows(STREAMED_ROWS),
      format: "JSONEachRow",
    });
    const answer = await compressing.query({ query: "select id, name from node_compressed order by id", format: "JSONEachRow" });
    const data = await answer.json();
    await compressing.close();
    return {
      written: summary.written_rows,
      encoding: answer.response_headers["content-encoding"],
      count: data.length,
      last: data.at(-1),
    };
  },

  async commands_and_sessions() {
    const session_id = randomUUID();
    const query_id = randomUUID();
    const created = await client.command({
      query: "create temporary table mine (a UInt8)",
      session_id,
      query_id,
    });
    const exec = await client.exec({ query: "insert into mine values (1), (2)", session_id });
    exec.stream.resume();
    await new Promise((resolve) => exec.stream.once("close", resolve));
    const answer = await client.query({ query: "select sum(a) as sum from mine", format: "JSONEachRow", session_id });
    const outside = await json("select * from mine").then(
      () => "seen",
      (error) => error.type,
    );
    return { same_id: created.query_id === query_id, sum: (await answer.json())[0].sum, outside };
  },

  async errors_have_code_and_type() {
    const caught = async (promise) => {
      try {
        await promise;
      } catch (error) {
        return { name: error.constructor.name, code: error.code, type: error.type, message: error.message };
      }
    };
    const wrong = connect({ password: "wrong" });
    const found = {
      table: await caught(json("select * from no_such_table")),
      syntax: await caught(client.command({ query: "selekt 1" })),
      password: await caught(json("select 1", wrong)),
      insert: await caught(
        client.insert({ table: "node_stream", values: [{ id: "no number" }], format: "JSONEachRow" }),
      ),
    };
    await wrong.close();
    return found;
  },

  async errors_after_the_first_rows() {
    const answer = await client.query({
      query: "select throwIf(number = 300000) as n, repeat('x', 100) as s from numbers(400000)",
      format: "JSONEachRow",
      clickhouse_settings: { max_threads: 1 },
    });
    let count = 0;
    try {
      for await (const batch of answer.stream()) count += batch.length;
    } catch (error) {
      return { count, code: error.code, type: error.type, message: error.message };
    }
    return { count };
  },
};

for (const [name, task] of Object.entries(tasks)) {
  try {
    results[name] = await task();
  } catch (error) {
    results[name] = { failed: error.stack };
  }
}
await client.close();
console.log(JSON.stringify(results));
