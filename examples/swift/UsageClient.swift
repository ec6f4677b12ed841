// Send usage events to ApexMediation: each once, whatever the network or this app does meanwhile.
//
//     let usage = UsageClient(url: URL(string: "https://api.example.com")!, apiKey: key, queueFile: file)
//     try usage.track("impressions", 3, ["platform": "ios"])
//     usage.close()
//
// An event gets its id and its time in `track` and keeps both: the API counts an id once, so sending again what may
// have arrived is always safe. Needs Foundation and nothing else.

import Foundation
#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

private let maxBatchEvents = 1_000
private let maxBatchBytes = 1_048_576
private let longestPauseSeconds = 60.0
private let longestAskedSeconds = 3_600.0

/// What `track` throws after `close`; the event is not counted.
struct UsageClientClosed: Error {}

/// A queue of events and a thread that sends them.
final class UsageClient: @unchecked Sendable {
    /// Why nothing is sent any more.
    var stopped: String? {
        changed.lock()
        defer { changed.unlock() }
        return reasonToStop
    }
    private var reasonToStop: String?
    private let request: URLRequest
    private let queueFile: URL?
    private let maxQueued: Int
    private let flushSeconds: Double
    private let firstPauseSeconds: Double
    private let changed = NSCondition()
    private var queue: [Data]
    private var batchLimit = maxBatchEvents
    private var failures = 0
    private var isUrgent = false
    private var isClosed = false
    private let session = URLSession(configuration: .ephemeral, delegate: NoRedirects(), delegateQueue: nil)

    /// - Parameters:
    ///   - queueFile: keeps what is not sent yet over the end of the app; one client a file
    ///   - maxQueued: with so many events waiting, `track` refuses further ones
    ///   - flushSeconds: how long an event waits for others to share its request
    ///   - timeoutSeconds: how long the API may say nothing
    ///   - firstPauseSeconds: the longest wait after a first failure; doubled with each further one
    init(
        url: URL, apiKey: String, queueFile: URL? = nil, maxQueued: Int = 10_000, flushSeconds: Double = 2,
        timeoutSeconds: Double = 15, firstPauseSeconds: Double = 0.5
    ) {
        var request = URLRequest(url: url.appendingPathComponent("api/usage/batch"))
        request.httpMethod = "POST"
        request.timeoutInterval = timeoutSeconds
        request.setValue("Bearer \(apiKey)", forHTTPHeaderField: "Authorization")
        request.setValue("application/x-ndjson", forHTTPHeaderField: "Content-Type")
        self.request = request
        self.queueFile = queueFile
        self.maxQueued = maxQueued
        self.flushSeconds = flushSeconds
        self.firstPauseSeconds = firstPauseSeconds
        self.queue = UsageClient.recall(queueFile)
        Thread.detachNewThread { self.run() }
    }

    /// Queue an event and return its id; nil when the queue is full, and the event is not counted.
    ///
    /// - Parameter quantity: in the metric's unit; `Decimal(string: "0.1")` is exact, while Swift makes a literal such
    ///   as 3.133 a Double first
    /// - Throws: when the file can't be written, the metadata is no JSON, or the client is closed
    @discardableResult
    func track(_ metric: String, _ quantity: Decimal, _ metadata: [String: Any] = [:]) throws -> String? {
        let id = UUID().uuidString.lowercased()
        let event: [String: Any] = [
            "event_id": id, "metric_type": metric, "quantity": "\(quantity)", "timestamp": timestamp(), "metadata": metadata,
        ]
        guard JSONSerialization.isValidJSONObject(event) else { throw CocoaError(.coderInvalidValue) }
        // Sorted, so that what is logged of a line begins with its id.
        let line = try JSONSerialization.data(withJSONObject: event, options: .sortedKeys)
        changed.lock()
        defer { changed.unlock() }
        if isClosed { throw UsageClientClosed() }
        if queue.count >= maxQueued {
            log("queue full; an event of \(metric) is lost")
            return nil
        }
        if let queueFile { try append(line + Data("\n".utf8), to: queueFile) }
        queue.append(line)
        changed.broadcast()
        return id
    }

    /// Send what is queued without waiting for more; returns how many events are left after `timeout`.
    @discardableResult
    func flush(timeout: Double = 30) -> Int {
        changed.lock()
        defer { changed.unlock() }
        isUrgent = true
        changed.broadcast()
        wait(timeout) { queue.isEmpty || reasonToStop != nil || isClosed }
        isUrgent = false
        return queue.count
    }

    /// Flush and end; returns how many events are left, which only the file keeps.
    @discardableResult
    func close(timeout: Double = 30) -> Int {
        let left = flush(timeout: timeout)
        changed.lock()
        isClosed = true
        changed.broadcast()
        changed.unlock()
        return left
    }

    private func run() {
        defer { session.finishTasksAndInvalidate() }
        while let batch = nextBatch() {
            let pause = send(batch)
            changed.lock()
            wait(pause) { isClosed }
            let isOver = reasonToStop != nil
            changed.unlock()
            if isOver { return }
        }
    }

    /// Wait until `isReached`, at most `seconds`; the caller holds the lock.
    private func wait(_ seconds: Double, _ isReached: () -> Bool) {
        let deadline = Date(timeIntervalSinceNow: seconds)
        while !isReached() && changed.wait(until: deadline) {}
    }

    /// The oldest events, as many as one request takes; waits for some. Nil once closed.
    private func nextBatch() -> [Data]? {
        changed.lock()
        defer { changed.unlock() }
        while queue.isEmpty && !isClosed { changed.wait() }
        wait(flushSeconds) { isUrgent || isClosed || queue.count >= batchLimit }
        if isClosed { return nil }
        var batch: [Data] = []
        var size = 0
        for line in queue {
            size += line.count + 1
            if batch.count == batchLimit || (!batch.isEmpty && size > maxBatchBytes) { break }
            batch.append(line)
        }
        return batch
    }

    private struct Answer: Decodable {
        struct Result: Decodable {
            let status: String
            let reason: String?
        }
        let results: [Result]
    }

    /// Send one batch; returns the seconds to wait before the next.
    private func send(_ batch: [Data]) -> Double {
        // One event a line, not one array: then an event that is no JSON is rejected without the others.
        let (response, data, error) = post(Data(batch.joined(separator: Data("\n".utf8))))
        if (error as? URLError)?.code == .timedOut { halve(batch) }
        guard let response else { return backOff("no answer (\(error.map { "\($0)" } ?? "none"))") }
        let status = response.statusCode
        if status == 200 {
            guard let answer = try? JSONDecoder().decode(Answer.self, from: data), answer.results.count == batch.count
            else { return backOff("an answer that makes no sense") }
            // They would be rejected again; accepted and duplicate are both done.
            for (line, result) in zip(batch, answer.results) where result.status == "rejected" {
                log("an event is rejected (\(result.reason ?? "-")): \(beginning(line))")
            }
            done(batch.count)
            return 0
        }
        if status == 408 || status == 413 { halve(batch) }
        if status == 413 && batch.count > 1 { return 0 }
        if status == 413 {
            log("an event is too large and dropped: \(beginning(batch[0]))")
            done(1)
            return 0
        }
        if status == 429 || status == 503, let asked = response.value(forHTTPHeaderField: "Retry-After").flatMap({ Int($0) }) {
            // A little more than asked, so that all clients don't come back at the same moment.
            return min(max(Double(asked), 1), longestAskedSeconds) * Double.random(in: 1...1.2)
        }
        if status == 408 || status == 429 || status >= 500 { return backOff("status \(status)") }
        // 401 and 403: the key is no good. Others: the address or this client is wrong. Repeating mends neither.
        let reason = "the API answered \(status): \(String(decoding: data.prefix(300), as: UTF8.self))"
        changed.lock()
        reasonToStop = reason
        log("usage is not sent any more; \(queue.count) events are kept: \(reason)")
        changed.broadcast()
        changed.unlock()
        return 0
    }

    private func post(_ body: Data) -> (HTTPURLResponse?, Data, Error?) {
        final class Box: @unchecked Sendable { var value: (HTTPURLResponse?, Data, Error?) = (nil, Data(), nil) }
        let answer = Box()
        let answered = DispatchSemaphore(value: 0)
        session.uploadTask(with: request, from: body) { data, response, error in
            answer.value = (response as? HTTPURLResponse, data ?? Data(), error)
            answered.signal()
        }.resume()
        answered.wait()
        return answer.value
    }

    /// What was too large, or too slow for this line, goes in smaller pieces.
    private func halve(_ batch: [Data]) {
        changed.lock()
        defer { changed.unlock() }
        batchLimit = max(1, batch.count / 2)
    }

    /// Full jitter: anything up to a limit that doubles with each failure in a row.
    private func backOff(_ reason: String) -> Double {
        let limit = min(longestPauseSeconds, firstPauseSeconds * pow(2, Double(failures)))
        failures += 1
        log("\(reason); trying again within \(limit) s")
        return Double.random(in: 0...limit)
    }

    /// Forget the `count` oldest events.
    private func done(_ count: Int) {
        changed.lock()
        defer { changed.unlock() }
        if isClosed { return }  // the file may be the next client's; sent again, they count once
        queue.removeFirst(count)
        if let queueFile {
            do {
                try Data(queue.flatMap { $0 + Data("\n".utf8) }).write(to: queueFile, options: .atomic)
            } catch {  // the next start sends them again, and they count once
                log("the queue's file can't be written: \(error)")
            }
        }
        failures = 0
        // When it went through full, try an eighth more.
        if count == batchLimit { batchLimit = min(maxBatchEvents, count + max(1, count / 8)) }
        changed.broadcast()
    }

    /// The events that the file has; what was cut off at its end was never returned from `track`.
    private static func recall(_ file: URL?) -> [Data] {
        guard let file, let text = try? Data(contentsOf: file) else { return [] }
        let newline = UInt8(ascii: "\n")
        let whole = text.prefix(text.lastIndex(of: newline).map { $0 + 1 } ?? 0)
        if whole.count < text.count { try? Data(whole).write(to: file, options: .atomic) }
        // A blank line would get no result.
        return whole.split(separator: newline).map { Data($0) }.filter { $0.contains { $0 > UInt8(ascii: " ") } }
    }

    private func append(_ data: Data, to file: URL) throws {
        if !FileManager.default.fileExists(atPath: file.path) { try Data().write(to: file) }
        let handle = try FileHandle(forUpdating: file)
        defer { try? handle.close() }
        let newline = Data("\n".utf8)
        let size = try handle.seekToEnd()
        if size > 0 {
            try handle.seek(toOffset: size - 1)
            // Where a write broke off, as on a full disk, it must not spoil this line.
            if try handle.read(upToCount: 1) != newline { try handle.write(contentsOf: newline) }
        }
        try handle.write(contentsOf: data)
    }

    private func timestamp() -> String {
        let formatter = ISO8601DateFormatter()
        formatter.formatOptions = [.withInternetDateTime, .withFractionalSeconds]
        return formatter.string(from: Date())
    }

    private func beginning(_ line: Data) -> String {
        String(decoding: line.prefix(200), as: UTF8.self)
    }

    private func log(_ text: String) {
        FileHandle.standardError.write(Data("\(text)\n".utf8))
    }
}

/// The key is not for other places.
private final class NoRedirects: NSObject, URLSessionTaskDelegate {
    func urlSession(
        _ session: URLSession, task: URLSessionTask, willPerformHTTPRedirection response: HTTPURLResponse,
        newRequest request: URLRequest, completionHandler: @escaping @Sendable (URLRequest?) -> Void
    ) {
        completionHandler(nil)
    }
}

/// Track a line `metric quantity` of standard input each, print its id; 1 when some could not be sent.
@main
enum Main {
    static func main() throws {
        let environment = ProcessInfo.processInfo.environment
        guard let url = environment["APEX_API_URL"].flatMap(URL.init(string:)), let key = environment["APEX_API_KEY"]
        else { fatalError("set APEX_API_URL and APEX_API_KEY") }
        let file = CommandLine.arguments.dropFirst().first.map { URL(fileURLWithPath: $0) }
        func seconds(_ name: String, _ otherwise: Double) -> Double { environment[name].flatMap(Double.init) ?? otherwise }
        let usage = UsageClient(
            url: url, apiKey: key, queueFile: file, flushSeconds: seconds("APEX_FLUSH_SECONDS", 2),
            timeoutSeconds: seconds("APEX_TIMEOUT_SECONDS", 15),
            firstPauseSeconds: seconds("APEX_FIRST_PAUSE_SECONDS", 0.5))
        while let line = readLine() {
            let words = line.split(separator: " ")
            let id = try usage.track(String(words[0]), Decimal(string: String(words[1])) ?? .nan)
            FileHandle.standardOutput.write(Data("\(id ?? "null")\n".utf8))
        }
        exit(usage.close() > 0 ? 1 : 0)
    }
}
