//! Answers questions about tasks, on a connection of its own, which it opens when it is first asked something.

use postgres::Row;
use postgres::types::ToSql;

use super::session::{Address, Session};
use super::tables::{
    Damaged, columns, read_attempt, read_task, short_columns, short_size, size, task_id, uuid,
};
use super::{as_limit, damaged};
use crate::storage::store::{Filter, MAX_PAGE, MAX_PAGE_BYTES, Page, StoreError, StoreReader};
use crate::storage::task::{FailedAttempt, StoredTask, TaskId, TaskState};

/// Rows that one page looks at, at most; a page may so be empty and not the last.
const MAX_SCANNED: i64 = 20_000;

pub(super) struct PostgresReader {
    address: Address,
    session: Option<Session>,
}

impl PostgresReader {
    pub(super) fn new(address: Address) -> Self {
        PostgresReader { address, session: None }
    }

    /// The rows of a query. A connection that turns out to be lost is opened anew, once.
    fn query(&mut self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        for is_last in [false, true] {
            let session = match &mut self.session {
                Some(session) => session,
                None => {
                    let mut session = self.address.connect()?;
                    session
                        .client
                        .batch_execute("SET default_transaction_read_only = on")
                        .map_err(|error| self.address.error(&error))?;
                    self.session.insert(session)
                }
            };
            let Session { client, statements } = session;
            match statements.get(client, sql).and_then(|statement| client.query(&statement, values)) {
                Ok(rows) => return Ok(rows),
                Err(error) => {
                    let is_lost = client.is_closed() || error.is_closed();
                    if is_lost {
                        self.session = None;
                    }
                    if is_last || !is_lost {
                        return Err(self.address.error(&error));
                    }
                }
            }
        }
        Ok(Vec::new())
    }

    fn damaged(&self, Damaged(column): Damaged) -> StoreError {
        damaged(&self.address, column)
    }

    /// Makes a page of rows whose last column is the number of rows that there were before the page's bytes ended it.
    fn page(&self, rows: &[Row], most: i64) -> Result<Page, StoreError> {
        let tasks: Result<Vec<StoredTask>, Damaged> = rows.iter().map(read_task).collect();
        let tasks = tasks.map_err(|error| self.damaged(error))?;
        let found: i64 = rows.first().map_or(0, |row| row.get(row.len() - 1));
        let is_end = found < most && as_limit(tasks.len()) == found;
        let next = tasks.last().filter(|_| !is_end).map(|stored| stored.task.id);
        Ok(Page { tasks, next })
    }
}

/// A page's query: the rows of `$inner`, in the order `$order`, until their bytes are `$5` or more.
macro_rules! paged {
    ($columns:expr, $size:expr, $order:literal, $inner:expr, $bytes:literal) => {
        concat!(
            "SELECT ",
            $columns,
            ", found FROM (SELECT *, count(*) OVER () AS found, sum(",
            $size,
            ") OVER (ORDER BY ",
            $order,
            ") - ",
            $size,
            " AS before FROM (",
            $inner,
            ") AS chosen) AS sized \
             WHERE before < ",
            $bytes,
            " ORDER BY ",
            $order
        )
    };
}

/// A list's query: `$states` says which part of an index serves it.
macro_rules! listed {
    ($states:literal) => {
        paged!(
            short_columns!(), short_size!(), "id DESC",
            concat!(
                "SELECT * FROM (SELECT * FROM tasks WHERE ", $states, "id < $1 AND id >= $2 ORDER BY id DESC LIMIT $3) \
                 AS scanned WHERE ($4::text IS NULL OR action = $4) AND ($5::smallint IS NULL OR state = $5) \
                 ORDER BY id DESC LIMIT $6"
            ),
            "$7"
        )
    };
}

/// Where a list's look at rows ended, if it did before the last of them.
macro_rules! scanned {
    ($states:literal) => {
        concat!(
            "SELECT id FROM tasks WHERE ",
            $states,
            "id < $1 AND id >= $2 ORDER BY id DESC OFFSET $3 LIMIT 1"
        )
    };
}

/// The queries of a list. The conditions are written out, since an index of some rows serves only a query that
/// repeats its condition.
fn list_queries(state: Option<TaskState>) -> (&'static str, &'static str) {
    match state {
        None => (listed!(""), scanned!("")),
        Some(TaskState::Done) => (listed!("state = 3 AND "), scanned!("state = 3 AND ")),
        Some(TaskState::Failed) => {
            (listed!("state >= 4 AND state = 4 AND "), scanned!("state >= 4 AND state = 4 AND "))
        }
        Some(TaskState::Dead) => {
            (listed!("state >= 4 AND state = 5 AND "), scanned!("state >= 4 AND state = 5 AND "))
        }
        Some(TaskState::Cancelled) => {
            (listed!("state >= 4 AND state = 6 AND "), scanned!("state >= 4 AND state = 6 AND "))
        }
        Some(TaskState::Expired) => {
            (listed!("state >= 4 AND state = 7 AND "), scanned!("state >= 4 AND state = 7 AND "))
        }
        Some(_) => (listed!("state <= 2 AND "), scanned!("state <= 2 AND ")),
    }
}

impl StoreReader for PostgresReader {
    fn fetch(&mut self, id: TaskId) -> Result<Option<StoredTask>, StoreError> {
        let sql = concat!("SELECT ", columns!(), " FROM tasks WHERE id = $1");
        let rows = self.query(sql, &[&uuid(id)])?;
        rows.first().map(read_task).transpose().map_err(|error| self.damaged(error))
    }

    fn open_tasks(&mut self, after: Option<TaskId>, limit: usize) -> Result<Page, StoreError> {
        let sql = paged!(
            columns!(),
            size!(),
            "id",
            "SELECT * FROM tasks WHERE state <= 2 AND id > $1 ORDER BY id LIMIT $2",
            "$3"
        );
        let (from, most) = (uuid(after.unwrap_or(TaskId([0; 16]))), as_limit(limit.clamp(1, MAX_PAGE)));
        let rows = self.query(sql, &[&from, &most, &(MAX_PAGE_BYTES as i64)])?;
        self.page(&rows, most)
    }

    fn list(&mut self, filter: &Filter, before: Option<TaskId>, limit: usize) -> Result<Page, StoreError> {
        let to = uuid(before.unwrap_or(TaskId([0xFF; 16])));
        let from = uuid(filter.since.map_or(TaskId([0; 16]), TaskId::first_at));
        let most = as_limit(limit.clamp(1, MAX_PAGE));
        let state = filter.state.map(|state| state as i16);
        let (list, scan) = list_queries(filter.state);
        // No action has the character 0 in its name, and PostgreSQL refuses it in texts.
        let action = filter.action.as_deref();
        if action.is_some_and(|action| action.contains('\0')) {
            return Ok(Page { tasks: Vec::new(), next: None });
        }
        let bytes = MAX_PAGE_BYTES as i64;
        let rows = self.query(list, &[&to, &from, &MAX_SCANNED, &action, &state, &most, &bytes])?;
        let mut page = self.page(&rows, most)?;
        if page.next.is_none() {
            // All that were looked at are told; there may be more to look at.
            let last = self.query(scan, &[&to, &from, &(MAX_SCANNED - 1)])?;
            page.next = last.first().map(|row| task_id(row.get(0)));
        }
        Ok(page)
    }

    fn history(&mut self, id: TaskId) -> Result<Vec<FailedAttempt>, StoreError> {
        let sql = "SELECT task, attempt, failed_at, worker, error_code, error FROM failed_attempts WHERE task = $1 \
                   ORDER BY failed_at, attempt";
        let rows = self.query(sql, &[&uuid(id)])?;
        let attempts: Result<Vec<FailedAttempt>, Damaged> = rows.iter().map(read_attempt).collect();
        attempts.map_err(|error| self.damaged(error))
    }
}
