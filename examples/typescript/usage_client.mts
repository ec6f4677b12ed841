/**
 * Send usage events to ApexMediation: each once, whatever the network or this program does meanwhile.
 *
 *     const usage = new UsageClient("https://api.example.com", key, { queueFile: "usage-queue.ndjson" });
 *     usage.track("impressions", 3, { platform: "ios" });
 *     await usage.close();
 *
 * An event gets its id and its time in `track` and keeps both: the API counts an id once, so sending again what
 * may have arrived is always safe. Needs Node 20.3 (22.18 to run this file as it is), and nothing else.
 */

import { randomUUID } from "node:crypto";
import {
  appendFileSync, closeSync, existsSync, fstatSync, openSync, readFileSync, readSync, renameSync, writeFileSync,
} from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const MAX_BATCH_EVENTS = 1_000;
const MAX_BATCH_BYTES = 1_048_576;
const LONGEST_PAUSE_MS = 60_000;
const LONGEST_ASKED_MS = 3_600_000;

export interface Options {
  /** Keeps what is not sent yet over the end of this program; one client a file. Without it memory is all. */
  queueFile?: string;
  /** With so many events waiting, `track` refuses further ones. */
  maxQueued?: number;
  /** How long an event waits for others to share its request. */
  flushMs?: number;
  /** How long an answer may take. */
  timeoutMs?: number;
  /** The longest wait after a first failure; doubled with each further one. */
  firstPauseMs?: number;
}

interface Result {
  status: "accepted" | "duplicate" | "rejected";
  reason?: string;
}

export class UsageClient {
  /** Why nothing is sent any more. */
  stopped: string | undefined;
  private readonly url: string;
  private readonly headers: Record<string, string>;
  private readonly options: Options;
  private readonly queue: string[];
  private batchLimit = MAX_BATCH_EVENTS;
  private failures = 0;
  private timer: NodeJS.Timeout | undefined;
  private sending: Promise<void> | undefined;
  private readonly ended = new AbortController();

  constructor(url: string, apiKey: string, options: Options = {}) {
    this.url = `${url.replace(/\/+$/, "")}/api/usage/batch`;
    this.headers = { authorization: `Bearer ${apiKey}`, "content-type": "application/x-ndjson" };
    this.options = options;
    this.queue = this.recall();
    if (this.queue.length > 0) this.sendLater();
  }

  /**
   * Queue an event and return its id; null when the queue is full, and the event is not counted.
   *
   * Throws when the quantity is no number, the file can't be written, or the client is closed.
   */
  track(metric: string, quantity: number | string, metadata: Record<string, unknown> = {}): string | null {
    if (typeof quantity === "number" && !Number.isFinite(quantity)) throw new RangeError(`quantity is ${quantity}`);
    if (this.ended.signal.aborted) throw new Error("this client is closed; the event is not counted");
    if (this.queue.length >= (this.options.maxQueued ?? 10_000)) {
      console.error(`queue full; an event of ${metric} is lost`);
      return null;
    }
    const event_id = randomUUID();
    const timestamp = new Date().toISOString();
    const line = JSON.stringify({ event_id, metric_type: metric, quantity, timestamp, metadata });
    if (this.options.queueFile) append(this.options.queueFile, `${line}\n`);
    this.queue.push(line);
    this.sendLater();
    return event_id;
  }

  /** Send what is queued without waiting for more; returns how many events are left after `timeoutMs`. */
  async flush(timeoutMs = 30_000): Promise<number> {
    const enough = new AbortController();
    await Promise.race([
      this.send(),
      sleep(timeoutMs, undefined, { signal: enough.signal }).catch(() => undefined),
    ]);
    enough.abort();
    return this.queue.length;
  }

  /** Flush and end; returns how many events are left, which only the file keeps. */
  async close(timeoutMs = 30_000): Promise<number> {
    const left = await this.flush(timeoutMs);
    this.ended.abort();
    clearTimeout(this.timer);
    return left;
  }

  private sendLater(): void {
    if (this.queue.length >= this.batchLimit) void this.send();
    this.timer ??= setTimeout(() => {
      this.timer = undefined; // or none would be set for the events after a slow answer
      void this.send();
    }, this.options.flushMs ?? 2_000);
  }

  /** One loop at a time sends until nothing is left. */
  private send(): Promise<void> {
    this.sending ??= this.sendAll().finally(() => {
      this.sending = undefined;
    });
    return this.sending;
  }

  private async sendAll(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    while (this.queue.length > 0 && !this.stopped && !this.ended.signal.aborted) {
      const pause = await this.sendBatch(this.nextBatch());
      if (pause > 0) await sleep(pause, undefined, { signal: this.ended.signal }).catch(() => undefined);
    }
  }

  /** The oldest events, as many as one request takes. */
  private nextBatch(): string[] {
    const batch: string[] = [];
    let size = 0;
    for (const line of this.queue) {
      size += Buffer.byteLength(line) + 1;
      if (batch.length === this.batchLimit || (batch.length > 0 && size > MAX_BATCH_BYTES)) break;
      batch.push(line);
    }
    return batch;
  }

  /** Send one batch; returns the milliseconds to wait before the next. */
  private async sendBatch(batch: string[]): Promise<number> {
    let status: number, retryAfter: string, text: string, results: Result[];
    try {
      const answer = await fetch(this.url, {
        method: "POST",
        headers: this.headers,
        // One event a line, not one array: then an event that is no JSON is rejected without the others.
        body: batch.join("\n"),
        redirect: "manual", // the key is not for other places
        signal: AbortSignal.any([AbortSignal.timeout(this.options.timeoutMs ?? 15_000), this.ended.signal]),
      });
      status = answer.status;
      retryAfter = answer.headers.get("retry-after") ?? "";
      text = await answer.text();
      results = status === 200 ? resultsOf(text, batch.length) : [];
    } catch (error) {
      if (error instanceof Error && error.name === "TimeoutError") this.halve(batch);
      return this.backOff(`no answer (${error})`);
    }
    if (status === 200) {
      results.forEach((result, index) => {
        // It would be rejected again; accepted and duplicate are both done.
        if (result.status !== "rejected") return;
        console.error(`an event is rejected (${result.reason}): ${batch[index]?.slice(0, 200)}`);
      });
      this.done(batch.length);
      return 0;
    }
    if (status === 408 || status === 413) this.halve(batch);
    if (status === 413 && batch.length > 1) return 0;
    if (status === 413) {
      console.error(`an event is too large and dropped: ${batch[0]?.slice(0, 200)}`);
      this.done(1);
      return 0;
    }
    if ((status === 429 || status === 503) && /^\d+$/.test(retryAfter)) {
      // A little more than asked, so that all clients don't come back at the same moment.
      return Math.min(Math.max(Number(retryAfter) * 1000, 1000), LONGEST_ASKED_MS) * (1 + Math.random() * 0.2);
    }
    if (status === 408 || status === 429 || status >= 500) return this.backOff(`status ${status}`);
    // 401 and 403: the key is no good. Others: the address or this client is wrong. Repeating mends neither.
    this.stopped = `the API answered ${status}: ${text.slice(0, 300)}`;
    console.error(`usage is not sent any more; ${this.queue.length} events are kept: ${this.stopped}`);
    return 0;
  }

  /** What was too large, or too slow for this line, goes in smaller pieces. */
  private halve(batch: string[]): void {
    this.batchLimit = Math.max(1, Math.floor(batch.length / 2));
  }

  /** Full jitter: anything up to a limit that doubles with each failure in a row. */
  private backOff(reason: string): number {
    const limit = Math.min(LONGEST_PAUSE_MS, (this.options.firstPauseMs ?? 500) * 2 ** this.failures);
    this.failures += 1;
    console.warn(`${reason}; trying again within ${limit} ms`);
    return Math.random() * limit;
  }

  /** Forget the `count` oldest events. */
  private done(count: number): void {
    if (this.ended.signal.aborted) return; // the file may be the next client's; sent again, they count once
    this.queue.splice(0, count);
    if (this.options.queueFile) {
      try {
        writeFileSync(`${this.options.queueFile}.writing`, this.queue.map((line) => `${line}\n`).join(""));
        renameSync(`${this.options.queueFile}.writing`, this.options.queueFile);
      } catch (error) {
        // The next start sends them again, and they count once.
        console.error(`the queue's file can't be written: ${error}`);
      }
    }
    this.failures = 0;
    if (count === this.batchLimit) {
      // It went through full, so try an eighth more.
      this.batchLimit = Math.min(MAX_BATCH_EVENTS, count + Math.max(1, Math.floor(count / 8)));
    }
  }

  /** The events that the file has; what was cut off at its end was never returned from `track`. */
  private recall(): string[] {
    const file = this.options.queueFile;
    if (!file || !existsSync(file)) return [];
    const text = readFileSync(file, "utf8");
    const whole = text.slice(0, text.lastIndexOf("\n") + 1);
    if (whole.length < text.length) writeFileSync(file, whole);
    return whole.split("\n").filter((line) => line.trim() !== ""); // a blank line would get no result
  }
}

function append(file: string, line: string): void {
  const handle = openSync(file, "a+");
  try {
    const size = fstatSync(handle).size;
    const last = Buffer.from("\n");
    if (size > 0) readSync(handle, last, 0, 1, size - 1);
    // Where a write broke off, as on a full disk, it must not spoil this line.
    appendFileSync(handle, last.toString() === "\n" ? line : `\n${line}`);
  } finally {
    closeSync(handle);
  }
}

/** The results in an answer of 200; throws for what the API never says, such as a portal's page. */
function resultsOf(text: string, wanted: number): Result[] {
  const results: unknown = JSON.parse(text)?.results;
  const isResult = (each: unknown): each is Result => typeof each === "object" && each !== null;
  if (!Array.isArray(results) || results.length !== wanted || !results.every(isResult)) {
    throw new Error("an answer that makes no sense");
  }
  return results;
}

function milliseconds(name: string, seconds: number): number {
  return Number(process.env[name] ?? seconds) * 1000;
}

/** Track a line `metric quantity` of standard input each, print its id; 1 when some could not be sent. */
async function main(): Promise<void> {
  const { APEX_API_URL: url, APEX_API_KEY: key } = process.env;
  if (!url || !key) throw new Error("set APEX_API_URL and APEX_API_KEY");
  const queueFile = process.argv[2];
  const usage = new UsageClient(url, key, {
    ...(queueFile && { queueFile }),
    flushMs: milliseconds("APEX_FLUSH_SECONDS", 2),
    timeoutMs: milliseconds("APEX_TIMEOUT_SECONDS", 15),
    firstPauseMs: milliseconds("APEX_FIRST_PAUSE_SECONDS", 0.5),
  });
  for await (const line of createInterface({ input: process.stdin })) {
    const [metric = "", quantity = ""] = line.split(" ");
    // A decimal goes as text, exactly as it was written.
    console.log(usage.track(metric, /^\d+$/.test(quantity) ? Number(quantity) : quantity));
  }
  process.exitCode = (await usage.close()) > 0 ? 1 : 0;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await main();
