//! What lies between balancers that share a database: claiming what is nobody's, and seeing to it that nothing stays
//! nobody's for ever.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use postgres::{Row, Transaction};
use reparto_protocol::ErrorCode;
use uuid::Uuid;

use super::as_limit;
use super::batch::BatchError;
use super::session::Statements;
use super::shared::{ShareSettings, micros};
use super::tables::{Damaged, columns, read_task, task_id, uuid};
use crate::storage::store::{Answer, Operation, ToPublish};
use crate::storage::task::{StoredTask, TaskId};

/// Rows that a step of the walk looks at.
const MOST_LOOKED_AT: i64 = 5000;
/// How often the walk is made when there is no cause for it, to find messages that the bus has lost.
const WALK: Duration = Duration::from_secs(60);
/// An outcome that is owed, and that its balancer has not told for this long, is told again.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// Outcomes that are owed, in a step.
const MOST_OWED: usize = 256;
/// How long the row of a balancer that is gone is kept.
const KEPT: &str = "1 hour";

/// Makes tasks a balancer's own, those that are nobody's; one answer for each.
pub(super) fn claim(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    me: i64,
    claims: &[Operation],
) -> Result<Vec<Answer>, BatchError> {
    let wanted = claims.iter().filter_map(|operation| match operation {
        Operation::Claim { id, named } => Some((uuid(*id), *named)),
        _ => None,
    });
    let (ids, named): (Vec<Uuid>, Vec<bool>) = wanted.unzip();
    // Locked in the order of their ids, as everybody does.
    let update = statements.get(
        transaction,
        concat!(
            "UPDATE tasks SET owner = $1 WHERE id IN (SELECT id FROM tasks \
             JOIN unnest($2::uuid[], $3::boolean[]) AS wanted (task, named) ON id = task \
             WHERE state IN (1, 2) AND (state = 1 AND owner IS NULL OR named AND (owner IS NULL OR owner = $1 OR \
             NOT EXISTS (SELECT 1 FROM balancers WHERE balancers.id = owner AND NOT fenced))) \
             ORDER BY id FOR UPDATE OF tasks) RETURNING ",
            columns!()
        ),
    )?;
    let mut claimed = HashMap::new();
    for row in transaction.query(&update, &[&me, &ids, &named])? {
        let stored = read_task(&row)?;
        claimed.insert(stored.task.id, stored);
    }
    let answer = |operation: &Operation| match operation {
        Operation::Claim { id, .. } => {
            let found: Option<StoredTask> = claimed.remove(id);
            found.map_or(Answer::Elsewhere, |task| Answer::Claimed { task: Box::new(task), owner: me })
        }
        _ => Answer::Noted,
    };
    Ok(claims.iter().map(answer).collect())
}

/// Nobody is owed the outcomes of these tasks any more.
pub(super) fn settle(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    settled: &[Operation],
) -> Result<Vec<Answer>, BatchError> {
    let wanted = settled.iter().filter_map(|operation| match operation {
        Operation::Settle { id } => Some(uuid(*id)),
        _ => None,
    });
    let ids: Vec<Uuid> = wanted.collect();
    let update = statements.get(
        transaction,
        "UPDATE tasks SET reply = NULL WHERE id IN (SELECT id FROM tasks WHERE id = ANY($1) AND state >= 3 \
         ORDER BY id FOR UPDATE)",
    )?;
    transaction.execute(&update, &[&ids])?;
    Ok(settled.iter().map(|_| Answer::Noted).collect())
}

/// How far the sweep is.
#[derive(Debug, Clone)]
pub(super) struct Sweeping {
    /// The last id that the walk over open tasks has looked at; `None` when there is no walk.
    cursor: Option<TaskId>,
    /// Balancers of which the walk leaves nothing: their time was over when it began.
    ending: Vec<i64>,
    last_walk: Option<Instant>,
}

impl Sweeping {
    pub(super) fn new() -> Sweeping {
        Sweeping { cursor: None, ending: Vec::new(), last_walk: None }
    }

    /// A step: what is due, what has expired, and a part of the walk over open tasks if there is cause for it.
    pub(super) fn step(
        &mut self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
        (me, settings): (i64, &ShareSettings),
        may_fence: bool,
        (now, limit): (i64, usize),
    ) -> Result<Answer, BatchError> {
        let mut to_publish = take_due(transaction, statements, me, (now, limit))?;
        let mut more = to_publish.len() >= limit;
        let expired = expire(transaction, statements, now)?;
        if may_fence {
            fence(transaction, statements)?;
        }
        let left = limit.saturating_sub(to_publish.len());
        if left > 0 && self.is_walking(transaction, statements, settings)? {
            more |= self.walk(transaction, statements, (me, settings), (now, left), &mut to_publish)?;
        }
        let owed = owed(transaction, statements, me, (now, limit))?;
        let next = statements
            .get(transaction, "SELECT due_at FROM tasks WHERE state = 0 ORDER BY due_at, id LIMIT 1")?;
        let next_due = transaction.query_opt(&next, &[])?.and_then(|row| row.get(0));
        Ok(Answer::Swept { owner: me, to_publish, expired, owed, next_due, more })
    }

    /// Whether the walk goes on; begins it where there is cause.
    fn is_walking(
        &mut self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
        settings: &ShareSettings,
    ) -> Result<bool, BatchError> {
        if self.cursor.is_some() {
            return Ok(true);
        }
        let select = statements.get(
            transaction,
            "SELECT id, lease_until < now() - $1 * interval '1 microsecond' FROM balancers WHERE fenced AND NOT swept",
        )?;
        let dead = transaction.query(&select, &[&micros(settings.claim_time)])?;
        if dead.is_empty()
            && self.last_walk.is_some_and(|last| last.elapsed() < WALK.min(settings.publish_again))
        {
            return Ok(false);
        }
        self.ending = dead.iter().filter(|row| row.get(1)).map(|row| row.get(0)).collect();
        self.cursor = Some(TaskId([0; 16]));
        self.last_walk = Some(Instant::now());
        Ok(true)
    }

    /// Frees what belongs to balancers that are fenced, and finds what nobody has undertaken to publish or what has
    /// waited for so long that its message may be lost. Says whether there is more of the walk.
    fn walk(
        &mut self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
        (me, settings): (i64, &ShareSettings),
        (now, limit): (i64, usize),
        to_publish: &mut Vec<ToPublish>,
    ) -> Result<bool, BatchError> {
        let from = uuid(self.cursor.unwrap_or(TaskId([0; 16])));
        let end = statements.get(
            transaction,
            "SELECT id FROM tasks WHERE state <= 2 AND id > $1 ORDER BY id OFFSET $2 LIMIT 1",
        )?;
        let end: Option<Uuid> = transaction.query_opt(&end, &[&from, &MOST_LOOKED_AT])?.map(|row| row.get(0));
        let to = end.unwrap_or(Uuid::max());
        let free = statements.get(
            transaction,
            "UPDATE tasks SET owner = NULL, publisher = $1, published_at = $2, state = 1 WHERE id IN ( \
             SELECT id FROM tasks WHERE state IN (1, 2) AND id > $3 AND id <= $4 AND CASE \
             WHEN owner IS NOT NULL THEN NOT EXISTS (SELECT 1 FROM balancers WHERE balancers.id = owner \
             AND (NOT fenced OR state = 2 AND lease_until > now() - $5 * interval '1 microsecond')) \
             ELSE state = 2 OR publisher IS NULL \
             OR NOT EXISTS (SELECT 1 FROM balancers WHERE balancers.id = publisher AND NOT fenced) \
             OR coalesce(published_at, created_at) < \
             $2 - greatest($6, coalesce(published_at, created_at) - created_at) END \
             ORDER BY id LIMIT $7 FOR UPDATE) RETURNING id, action, priority",
        )?;
        let again = i64::try_from(settings.publish_again.as_micros()).unwrap_or(i64::MAX);
        let rows = transaction
            .query(&free, &[&me, &now, &from, &to, &micros(settings.claim_time), &again, &as_limit(limit)])?;
        let mut last = None;
        for row in &rows {
            let found = published(row)?;
            last = last.max(Some(found.id));
            to_publish.push(found);
        }
        if rows.len() >= limit {
            self.cursor = last.or(self.cursor);
            return Ok(true);
        }
        self.cursor = end.map(task_id);
        if end.is_none() {
            self.end_walk(transaction, statements)?;
        }
        Ok(end.is_some())
    }

    fn end_walk(
        &mut self,
        transaction: &mut Transaction<'_>,
        statements: &mut Statements,
    ) -> Result<(), postgres::Error> {
        let ended = std::mem::take(&mut self.ending);
        if !ended.is_empty() {
            let swept =
                statements.get(transaction, "UPDATE balancers SET swept = true WHERE id = ANY($1)")?;
            transaction.execute(&swept, &[&ended])?;
        }
        transaction.execute(
            &format!("DELETE FROM balancers WHERE swept AND lease_until < now() - interval '{KEPT}'"),
            &[],
        )?;
        Ok(())
    }
}

fn published(row: &Row) -> Result<ToPublish, Damaged> {
    Ok(ToPublish {
        id: task_id(row.get(0)),
        action: row.get::<_, &str>(1).into(),
        priority: u8::try_from(row.get::<_, i16>(2)).map_err(|_| Damaged("priority"))?,
    })
}

/// Scheduled tasks whose time has come are queued, each by one balancer.
fn take_due(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    me: i64,
    (now, limit): (i64, usize),
) -> Result<Vec<ToPublish>, BatchError> {
    let update = statements.get(
        transaction,
        "UPDATE tasks SET state = 1, publisher = $1, published_at = $2 WHERE id IN (SELECT id FROM tasks \
         WHERE state = 0 AND due_at <= $2 ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED) \
         RETURNING id, action, priority",
    )?;
    let rows = transaction.query(&update, &[&me, &now, &as_limit(limit)])?;
    rows.iter().map(|row| published(row).map_err(BatchError::from)).collect()
}

/// Tasks whose deadline has passed while nobody had them have expired.
fn expire(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    now: i64,
) -> Result<Vec<TaskId>, postgres::Error> {
    let update = statements.get(
        transaction,
        "UPDATE tasks SET state = 7, ended_at = $1, payload = NULL, publisher = NULL, error_code = $2, \
         error = 'its deadline passed before a worker had time for it' WHERE id IN (SELECT id FROM tasks \
         WHERE state <= 1 AND owner IS NULL AND deadline_at <= $1 ORDER BY deadline_at LIMIT 1000 \
         FOR UPDATE SKIP LOCKED) RETURNING id",
    )?;
    let code = i32::from(ErrorCode::Expired.number());
    let rows = transaction.query(&update, &[&now, &code])?;
    Ok(rows.iter().map(|row| task_id(row.get(0))).collect())
}

/// Ended tasks whose outcome is owed to somebody and that nobody alive has undertaken to tell, or that this balancer has
/// not told for a while: it undertakes it now.
fn owed(
    transaction: &mut Transaction<'_>,
    statements: &mut Statements,
    me: i64,
    (now, limit): (i64, usize),
) -> Result<Vec<TaskId>, postgres::Error> {
    let update = statements.get(
        transaction,
        "UPDATE tasks SET publisher = $1 WHERE id IN (SELECT id FROM tasks WHERE reply IS NOT NULL AND state >= 3 \
         AND (publisher IS NULL OR publisher = $1 AND ended_at < $2 \
         OR NOT EXISTS (SELECT 1 FROM balancers WHERE balancers.id = publisher AND NOT fenced)) \
         ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED) RETURNING id",
    )?;
    let again = i64::try_from(TELL_AGAIN.as_micros()).unwrap_or(i64::MAX);
    let most = as_limit(limit.min(MOST_OWED));
    let rows = transaction.query(&update, &[&me, &now.saturating_sub(again), &most])?;
    Ok(rows.iter().map(|row| task_id(row.get(0))).collect())
}

/// Balancers whose lease has run out own nothing any more. One that writes at this moment is left alone.
fn fence(transaction: &mut Transaction<'_>, statements: &mut Statements) -> Result<(), postgres::Error> {
    let update = statements.get(
        transaction,
        "UPDATE balancers SET fenced = true WHERE id IN (SELECT id FROM balancers WHERE NOT fenced \
         AND lease_until < now() FOR UPDATE SKIP LOCKED) RETURNING id, holder",
    )?;
    for row in transaction.query(&update, &[])? {
        let (id, holder): (i64, &str) = (row.get(0), row.get(1));
        log::warn!("balancer {id} ({holder}) is not heard of any more; its tasks go to others");
    }
    Ok(())
}
