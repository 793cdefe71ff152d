//! Tells other balancers which tasks have ended, and hears of those that ended there.
//!
//! It is PostgreSQL's NOTIFY, and not the bus, that carries this: the word goes out with the very commit that records the
//! end, so it comes neither before it nor without it, and those who wait are woken also while RabbitMQ is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use postgres::Transaction;
use postgres::fallible_iterator::FallibleIterator;

use super::session::{Address, Statements};
use crate::storage::store::StoreError;
use crate::storage::task::TaskId;

/// Ids in one notification: PostgreSQL takes less than 8,000 bytes.
const IDS: usize = 240;
/// How often the thread looks whether it is to end, and how long it waits before it connects again.
const LOOK: Duration = Duration::from_millis(500);

/// What a balancer hears of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These tasks have ended.
    Ended(Vec<TaskId>),
    /// Something may have been missed: the connection was lost, and is there again.
    Gap,
}

/// What is needed to hear of the others.
#[derive(Debug, Clone)]
pub struct Hearing {
    address: Address,
    lock_key: i64,
    me: Arc<AtomicI64>,
}

/// Hears of the others on a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    stops: Arc<AtomicBool>,
}

impl Hearing {
    pub(super) fn new(address: Address, lock_key: i64, me: Arc<AtomicI64>) -> Hearing {
        Hearing { address, lock_key, me }
    }

    /// Of a database that is nowhere.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Hearing {
        let address = Address::parse("postgres://nobody@127.0.0.1:1/nowhere").expect("an address");
        Hearing::new(address, 0, Arc::default())
    }

    /// Begins to listen, on a thread of its own. `heard` is called from it, and must not block.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when no thread can be had.
    pub fn start(self, heard: impl Fn(Heard) + Send + 'static) -> Result<Listener, StoreError> {
        let Hearing { address, lock_key, me } = self;
        let stops = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stops);
        let listen = move || {
            while !stop.load(Ordering::Acquire) {
                if let Err(error) = listen(&address, lock_key, &me, &heard, &stop) {
                    // Whoever writes says so in the log.
                    log::debug!("{error}");
                }
                thread::sleep(LOOK);
            }
        };
        thread::Builder::new()
            .name("storage-listener".into())
            .spawn(listen)
            .map_err(StoreError::unavailable)?;
        Ok(Listener { stops })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Release);
    }
}

/// Listens on one connection until that is lost.
fn listen(
    address: &Address,
    lock_key: i64,
    me: &AtomicI64,
    heard: &impl Fn(Heard),
    stops: &AtomicBool,
) -> Result<(), StoreError> {
    let mut session = address.connect()?;
    let error = |error: postgres::Error| address.error(&error);
    session.client.batch_execute(&format!("LISTEN {}", channel(lock_key))).map_err(error)?;
    heard(Heard::Gap);
    while !stops.load(Ordering::Acquire) {
        let mut notifications = session.client.notifications();
        let mut coming = notifications.timeout_iter(LOOK);
        while let Some(notification) = coming.next().map_err(error)? {
            if let Some((from, ids)) = read(notification.payload())
                && from != me.load(Ordering::Acquire)
            {
                heard(Heard::Ended(ids));
            }
        }
        drop(coming);
        drop(notifications);
        if session.client.is_closed() {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells the others that tasks end with this transaction.
pub(super) fn tell(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    lock_key: i64,
    me: i64,
    ended: &[TaskId],
) -> Result<(), postgres::Error> {
    if ended.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> = ended.chunks(IDS).map(|ids| write(me, ids)).collect();
    let tell = statements.get(transaction, "SELECT pg_notify($1, text) FROM unnest($2::text[]) AS text")?;
    transaction.execute(&tell, &[&channel(lock_key), &texts])?;
    Ok(())
}

/// The tables of a schema have a channel of their own.
pub(super) fn channel(lock_key: i64) -> String {
    format!("reparto_{:016x}", lock_key.cast_unsigned())
}

fn write(me: i64, ids: &[TaskId]) -> String {
    let mut text = format!("{me} ");
    for id in ids {
        text.push_str(&format!("{:032x}", u128::from_be_bytes(id.0)));
    }
    text
}

fn read(text: &str) -> Option<(i64, Vec<TaskId>)> {
    let (from, ids) = text.split_once(' ')?;
    let ids = ids.as_bytes().chunks(32).map(|digits| {
        // A digit too few is no id.
        let digits: &[u8; 32] = digits.try_into().ok()?;
        let digits = std::str::from_utf8(digits).ok()?;
        u128::from_str_radix(digits, 16).ok().map(|id| TaskId(id.to_be_bytes()))
    });
    Some((from.parse().ok()?, ids.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_back_and_fits() {
        let ids: Vec<TaskId> = (0..IDS as u8).map(|byte| TaskId([byte; 16])).collect();
        let text = write(i64::MAX, &ids);
        assert!(text.len() < 8000);
        assert_eq!(read(&text), Some((i64::MAX, ids)));
        for nonsense in ["", "x", "7 x", "7 0", "x 00000000000000000000000000000001"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
