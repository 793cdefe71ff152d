//! The bounds that protocol v1 puts on what a peer may send, and the defaults that both sides start from.

use std::time::Duration;

/// The protocol's version that this library speaks.
pub const VERSION: u16 = 1;

/// The first four bytes of every HELLO's and WELCOME's MAGIC field: `RPTO`.
pub const MAGIC: u32 = 0x5250_544F;

/// Largest frame taken by default, header included: 16 MiB.
pub const DEFAULT_MAX_FRAME_BYTES: u32 = 16 * 1024 * 1024;

/// Smallest value a peer may set its largest frame to: 64 KiB of fields, a header, and some payload.
pub const MIN_MAX_FRAME_BYTES: u32 = 128 * 1024;

/// Largest frame that may be configured: 1 GiB.
pub const MAX_MAX_FRAME_BYTES: u32 = 1024 * 1024 * 1024;

/// How much longer than MAX_FRAME says a frame from the balancer may be: 64 KiB. It passes a payload on under
/// fields of its own, which may take more room than those the payload came under, so clients and workers take
/// frames of up to MAX_FRAME and this.
pub const RELAY_SLACK_BYTES: u32 = 64 * 1024;

/// Longest action name, in bytes of UTF-8.
pub const MAX_ACTION_BYTES: usize = 255;

/// Longest worker id, in bytes of UTF-8.
pub const MAX_WORKER_ID_BYTES: usize = 255;

/// Longest task key, in bytes.
pub const MAX_KEY_BYTES: usize = 255;

/// Longest idempotency key, in bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;

/// Longest shared secret in a HELLO, in bytes.
pub const MAX_TOKEN_BYTES: usize = 255;

/// Longest sentence in an ERROR, GOAWAY or failed TASK_RESULT, in bytes; longer ones are cut at a character.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024;

/// Longest AGENT name, in bytes.
pub const MAX_AGENT_BYTES: usize = 255;

/// Most actions that one worker may offer.
pub const MAX_ACTIONS_PER_WORKER: usize = 1024;

/// Most threads that one worker may announce.
pub const MAX_THREADS: u32 = 65_536;

/// Largest window that one worker may announce, in tasks.
pub const MAX_WINDOW: u32 = 1_048_576;

/// Window of a worker that announces none, in tasks.
pub const DEFAULT_WINDOW: u32 = 1024;

/// Most background tasks that a worker may name as still held when it registers.
pub const MAX_HELD_TASKS: usize = 65_536;

/// Largest weight of a worker; the smallest is 1, which is also the default.
pub const MAX_WEIGHT: u32 = 1000;

/// The lowest priority is 0, the highest this.
pub const MAX_PRIORITY: u8 = 9;

/// Priority of a task that asks for none.
pub const DEFAULT_PRIORITY: u8 = 4;

/// Attempts of a task that asks for no number.
pub const DEFAULT_MAX_ATTEMPTS: u8 = 3;

/// Longest time that a task may ask for in its deadline or wait: 366 days.
pub const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 3600);

/// The latest moment that a frame may name, in milliseconds since 1970, UTC: the end of the year 9999.
pub const MAX_MOMENT_MS: u64 = 253_402_300_799_999;

/// Wait before a background task's second attempt, if it asks for nothing else; it doubles with each further one.
pub const DEFAULT_BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// Longest wait between two attempts of a background task, if it asks for nothing else.
pub const DEFAULT_BACKOFF_MOST: Duration = Duration::from_secs(300);

/// How long an idempotency key stands for its task, if the task asks for nothing else: a day.
pub const DEFAULT_IDEMPOTENCY: Duration = Duration::from_secs(24 * 3600);

/// A foreground task that says nothing else waits this long for its first assignment.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// A side that has sent nothing for this long sends a PING.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);

/// A worker's connection that has been silent for this long is lost.
pub const DEFAULT_SILENCE: Duration = Duration::from_secs(15);

/// A frame that has begun must be whole within this time, and a connection must have said HELLO within it.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// A bit of FEATURES. In a balancer's WELCOME: it has a store, takes background tasks, and knows LIST_TASKS,
/// RETRY_TASK, DROP_TASK and CANCEL with a TASK_ID. In a worker's HELLO it says nothing yet.
pub const FEATURE_BACKGROUND: u64 = 1;
