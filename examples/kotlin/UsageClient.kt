/**
 * Send usage events to ApexMediation: each once, whatever the network or this app does meanwhile.
 *
 *     val usage = UsageClient("https://api.example.com", key, File(filesDir, "usage-queue.ndjson"))
 *     usage.track("impressions", 3, mapOf("platform" to "android"))
 *     usage.close()
 *
 * An event gets its id and its time in `track` and keeps both: the API counts an id once, so sending again what
 * may have arrived is always safe. For the JVM and Android (API 26); needs nothing beyond their own libraries.
 */

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.math.BigDecimal
import java.net.HttpURLConnection
import java.net.SocketTimeoutException
import java.net.URI
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.time.Instant
import java.time.temporal.ChronoUnit
import java.util.UUID
import java.util.concurrent.TimeUnit
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.thread
import kotlin.concurrent.withLock
import kotlin.math.max
import kotlin.math.min
import kotlin.math.pow
import kotlin.random.Random
import kotlin.system.exitProcess

private const val MAX_BATCH_EVENTS = 1_000
private const val MAX_BATCH_BYTES = 1_048_576
private const val LONGEST_PAUSE_MS = 60_000.0
private const val LONGEST_ASKED_SECONDS = 3_600L

/**
 * A queue of events and a thread that sends them.
 *
 * @param queueFile keeps what is not sent yet over the end of the app; one client a file
 * @param maxQueued with so many events waiting, `track` refuses further ones
 * @param flushMs how long an event waits for others to share its request
 * @param timeoutMs how long the API may say nothing
 * @param firstPauseMs the longest wait after a first failure; doubled with each further one
 */
class UsageClient(
    url: String,
    private val apiKey: String,
    private val queueFile: File? = null,
    private val maxQueued: Int = 10_000,
    private val flushMs: Long = 2_000,
    private val timeoutMs: Int = 15_000,
    private val firstPauseMs: Long = 500,
    private val log: (String) -> Unit = System.err::println,
) : AutoCloseable {
    /** Why nothing is sent any more. */
    @Volatile
    var stopped: String? = null
        private set
    private val endpoint = URI(url.trimEnd('/') + "/api/usage/batch").toURL()
    private val queue = ArrayDeque(recall())
    private val lock = ReentrantLock()
    private val changed = lock.newCondition()
    private var batchLimit = MAX_BATCH_EVENTS
    private var failures = 0
    private var isUrgent = false
    private var isClosed = false

    init {
        thread(isDaemon = true, name = "usage") { run() }
    }

    /**
     * Queue an event and return its id; null when the queue is full, and the event is not counted.
     *
     * @param quantity in the metric's unit; BigDecimal for decimals, which stay exact
     * @throws IllegalStateException when the client is closed
     */
    fun track(metric: String, quantity: Number, metadata: Map<String, Any?> = emptyMap()): String? {
        val id = UUID.randomUUID().toString()
        val event = mapOf(
            "event_id" to id,
            "metric_type" to metric,
            "quantity" to quantity,
            "timestamp" to Instant.now().truncatedTo(ChronoUnit.MILLIS).toString(),
            "metadata" to metadata,
        )
        val line = json(event)
        lock.withLock {
            check(!isClosed) { "this client is closed; the event is not counted" }
            if (queue.size >= maxQueued) {
                log("queue full; an event of $metric is lost")
                return null
            }
            queueFile?.let { append(it, "$line\n") }
            queue.addLast(line)
            changed.signalAll()
        }
        return id
    }

    /** Send what is queued without waiting for more; returns how many events are left after `timeoutMs`. */
    fun flush(timeoutMs: Long = 30_000): Int = lock.withLock {
        isUrgent = true
        changed.signalAll()
        await(timeoutMs) { queue.isEmpty() || stopped != null || isClosed }
        isUrgent = false
        queue.size
    }

    /** Flush and end; what is left, only the file keeps. */
    override fun close() {
        flush()
        lock.withLock {
            isClosed = true
            changed.signalAll()
        }
    }

    private fun run() {
        while (stopped == null) {
            val batch = nextBatch()
            if (batch.isEmpty()) return
            val pause = send(batch)
            lock.withLock { await(pause) { isClosed } }
        }
    }

    /** Wait until `isReached`, at most `ms`; the caller holds the lock. */
    private fun await(ms: Long, isReached: () -> Boolean) {
        var left = TimeUnit.MILLISECONDS.toNanos(ms)
        while (!isReached() && left > 0) left = changed.awaitNanos(left)
    }

    /** The oldest events, as many as one request takes; waits for some. Empty once closed. */
    private fun nextBatch(): List<String> = lock.withLock {
        await(Long.MAX_VALUE) { queue.isNotEmpty() || isClosed }
        await(flushMs) { isUrgent || isClosed || queue.size >= batchLimit }
        if (isClosed) return emptyList()
        val batch = mutableListOf<String>()
        var size = 0
        for (line in queue) {
            size += line.toByteArray().size + 1
            if (batch.size == batchLimit || (batch.isNotEmpty() && size > MAX_BATCH_BYTES)) break
            batch.add(line)
        }
        batch
    }

    /** Send one batch; returns the milliseconds to wait before the next. */
    private fun send(batch: List<String>): Long {
        val answer = try {
            // One event a line, not one array: then an event that is no JSON is rejected without the others.
            post(batch.joinToString("\n").toByteArray())
        } catch (error: IOException) {
            if (error is SocketTimeoutException) halve(batch)
            return backOff("no answer ($error)")
        }
        val status = answer.status
        if (status == 200) {
            val results = resultsOf(answer.body)
            if (results.size != batch.size) return backOff("an answer that makes no sense")
            // They would be rejected again; accepted and duplicate are both done.
            for ((line, result) in batch.zip(results)) {
                if (REJECTED.containsMatchIn(result)) log("an event is rejected ($result): ${line.take(200)}")
            }
            done(batch.size)
            return 0
        }
        if (status == 408 || status == 413) halve(batch)
        if (status == 413 && batch.size > 1) return 0
        if (status == 413) {
            log("an event is too large and dropped: ${batch[0].take(200)}")
            done(1)
            return 0
        }
        val asked = answer.retryAfter?.toLongOrNull()
        if ((status == 429 || status == 503) && asked != null) {
            // A little more than asked, so that all clients don't come back at the same moment.
            return (asked.coerceIn(1, LONGEST_ASKED_SECONDS) * 1000 * Random.nextDouble(1.0, 1.2)).toLong()
        }
        if (status == 408 || status == 429 || status >= 500) return backOff("status $status")
        // 401 and 403: the key is no good. Others: the address or this client is wrong. Repeating mends neither.
        lock.withLock {
            stopped = "the API answered $status: ${answer.body.take(300)}"
            log("usage is not sent any more; ${queue.size} events are kept: $stopped")
            changed.signalAll()
        }
        return 0
    }

    private class Answer(val status: Int, val retryAfter: String?, val body: String)

    private fun post(body: ByteArray): Answer {
        val connection = endpoint.openConnection() as HttpURLConnection
        try {
            connection.requestMethod = "POST"
            connection.connectTimeout = timeoutMs
            connection.readTimeout = timeoutMs
            connection.instanceFollowRedirects = false // the key is not for other places
            connection.doOutput = true
            connection.setRequestProperty("Authorization", "Bearer $apiKey")
            connection.setRequestProperty("Content-Type", "application/x-ndjson")
            connection.outputStream.use { it.write(body) }
            val status = connection.responseCode
            val stream = if (status < 400) connection.inputStream else connection.errorStream
            val text = stream?.use { it.readBytes().decodeToString() } ?: ""
            return Answer(status, connection.getHeaderField("Retry-After"), text)
        } finally {
            connection.disconnect()
        }
    }

    /** What was too large, or too slow for this line, goes in smaller pieces. */
    private fun halve(batch: List<String>) = lock.withLock { batchLimit = max(1, batch.size / 2) }

    /** Full jitter: anything up to a limit that doubles with each failure in a row. */
    private fun backOff(reason: String): Long {
        val limit = min(LONGEST_PAUSE_MS, firstPauseMs * 2.0.pow(failures))
        failures += 1
        log("$reason; trying again within ${limit.toLong()} ms")
        return Random.nextDouble(0.0, limit).toLong()
    }

    /** Forget the `count` oldest events. */
    private fun done(count: Int) = lock.withLock {
        if (isClosed) return@withLock // the file may be the next client's; sent again, they count once
        repeat(count) { queue.removeFirst() }
        queueFile?.let { file ->
            try {
                val temporary = File("${file.path}.writing")
                temporary.writeText(queue.joinToString("") { "$it\n" })
                Files.move(temporary.toPath(), file.toPath(), StandardCopyOption.REPLACE_EXISTING)
            } catch (error: IOException) { // the next start sends them again, and they count once
                log("the queue's file can't be written: $error")
            }
        }
        failures = 0
        // When it went through full, try an eighth more.
        if (count == batchLimit) batchLimit = min(MAX_BATCH_EVENTS, count + max(1, count / 8))
        changed.signalAll()
    }

    private fun append(path: File, line: String) = RandomAccessFile(path, "rw").use { file ->
        val size = file.length()
        file.seek(max(0, size - 1))
        // Where a write broke off, as on a full disk, it must not spoil this line.
        val isTorn = size > 0 && file.read() != '\n'.code
        file.write((if (isTorn) "\n$line" else line).toByteArray())
    }

    /** The events that the file has; what was cut off at its end was never returned from `track`. */
    private fun recall(): List<String> {
        if (queueFile == null || !queueFile.exists()) return emptyList()
        val text = queueFile.readText()
        val whole = text.substring(0, text.lastIndexOf('\n') + 1)
        if (whole.length < text.length) queueFile.writeText(whole)
        return whole.split('\n').filter(String::isNotBlank) // a blank line would get no result
    }
}

// There is no JSON in the JVM's own library. Results are flat objects, so that this finds each of them, whatever
// their messages say; quotes inside of a text are escaped, so that no text looks like a field. Android's ICU takes
// braces only with a backslash.
private val RESULT = Regex("""\{(?:[^\{\}"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+\}""")
private val REJECTED = Regex(""""status"\s*:\s*"rejected"""")

private fun resultsOf(body: String): List<String> {
    val start = body.indexOf("\"results\"")
    return if (start < 0) emptyList() else RESULT.findAll(body, start).map { it.value }.toList()
}

private fun json(value: Any?): String = when (value) {
    null, is Boolean -> value.toString()
    is Double -> json(BigDecimal.valueOf(value)) // raises for NaN and infinity
    is Float -> json(value.toDouble())
    is BigDecimal -> value.toPlainString()
    is Number -> value.toString()
    is Map<*, *> -> value.entries.joinToString(",", "{", "}") { (key, each) -> "${json(key.toString())}:${json(each)}" }
    else -> value.toString().map { char ->
        when {
            char == '"' || char == '\\' -> "\\$char"
            char < ' ' || char.isSurrogate() -> "\\u%04x".format(char.code)
            else -> char.toString()
        }
    }.joinToString("", "\"", "\"")
}

private fun milliseconds(name: String, seconds: Double): Long =
    ((System.getenv(name)?.toDouble() ?: seconds) * 1000).toLong()

/** Track a line `metric quantity` of standard input each, print its id; 1 when some could not be sent. */
fun main(arguments: Array<String>) {
    val queueFile = arguments.firstOrNull()?.let { File(it) }
    val usage = UsageClient(
        System.getenv("APEX_API_URL"),
        System.getenv("APEX_API_KEY"),
        queueFile,
        flushMs = milliseconds("APEX_FLUSH_SECONDS", 2.0),
        timeoutMs = milliseconds("APEX_TIMEOUT_SECONDS", 15.0).toInt(),
        firstPauseMs = milliseconds("APEX_FIRST_PAUSE_SECONDS", 0.5),
    )
    for (line in generateSequence(::readlnOrNull)) {
        val (metric, quantity) = line.split(" ")
        println(usage.track(metric, BigDecimal(quantity)))
    }
    val left = usage.flush()
    usage.close()
    exitProcess(if (left > 0) 1 else 0)
}
