//! Answers questions about tasks, on a connection of its own: it never waits for a commit.
//!
//! A task is looked up in the overlay first and in the tables then. The overlay forgets a task only after its row
//! is committed, so there is no moment at which neither knows it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use rusqlite::{Connection, params};

use super::overlay::{Overlay, View};
use super::tables::{self, COLUMNS, SHORT_COLUMNS};
use super::{WriteError, schema};
use crate::storage::store::{Filter, MAX_PAGE, MAX_PAGE_BYTES, Page, StoreError, StoreReader};
use crate::storage::task::{FailedAttempt, StoredTask, TaskId, TaskState};

/// Rows that one page looks at, at most; a page may so be empty and not the last.
const MAX_SCANNED: usize = 20_000;

pub(super) struct SqliteReader {
    connection: Connection,
    place: String,
    overlay: Arc<RwLock<Overlay>>,
}

impl SqliteReader {
    pub(super) fn new(connection: Connection, place: String, overlay: Arc<RwLock<Overlay>>) -> Self {
        SqliteReader { connection, place, overlay }
    }

    fn overlay(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, error: WriteError) -> StoreError {
        match error {
            WriteError::Sqlite(error) => schema::running(&self.place, &error),
            WriteError::Damaged => StoreError::Corrupt {
                place: self.place.clone(),
                reason: "a record of its journal cannot be read".into(),
            },
        }
    }

    fn durable(&self, id: TaskId) -> Option<View> {
        self.overlay().durable(id)
    }

    fn find(&self, id: TaskId) -> Result<Option<StoredTask>, WriteError> {
        match self.durable(id) {
            Some(view) if view.accepted.is_some() => Ok(view.over(None)?),
            Some(view) => Ok(view.over(tables::select_task(&self.connection, id)?)?),
            None => Ok(tables::select_task(&self.connection, id)?),
        }
    }

    /// Looks at rows in the order of `sql` and keeps those that `keeps`, with what the overlay knows beyond them.
    fn page(
        &self,
        sql: &str,
        values: &[&dyn rusqlite::ToSql],
        limit: usize,
        mut wants: impl FnMut(&str) -> bool,
        mut keeps: impl FnMut(&StoredTask) -> bool,
    ) -> Result<Page, WriteError> {
        let most = limit.clamp(1, MAX_PAGE);
        let mut select = self.connection.prepare_cached(sql)?;
        let mut rows = select.query(values)?;
        let (mut tasks, mut memory, mut scanned) = (Vec::new(), 0, 0);
        while let Some(row) = rows.next()? {
            let id = tables::read_id(row, 0)?;
            scanned += 1;
            if wants(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?) {
                let stored = tables::read_task(row)?;
                let stored = match self.durable(id) {
                    Some(view) => view.over(Some(stored))?,
                    None => Some(stored),
                };
                if let Some(stored) = stored.filter(&mut keeps) {
                    memory += stored.memory();
                    tasks.push(stored);
                }
            }
            if tasks.len() >= most || memory >= MAX_PAGE_BYTES || scanned >= MAX_SCANNED {
                return Ok(Page { tasks, next: Some(id) });
            }
        }
        Ok(Page { tasks, next: None })
    }
}

impl StoreReader for SqliteReader {
    fn fetch(&mut self, id: TaskId) -> Result<Option<StoredTask>, StoreError> {
        self.find(id).map_err(|error| self.error(error))
    }

    fn open_tasks(&mut self, after: Option<TaskId>, limit: usize) -> Result<Page, StoreError> {
        let from = after.unwrap_or(TaskId([0; 16]));
        let sql = format!("SELECT {COLUMNS} FROM tasks WHERE state <= 2 AND id > ?1 ORDER BY id");
        self.page(&sql, params![from.0], limit, |_| true, |stored| !stored.state.is_ended())
            .map_err(|error| self.error(error))
    }

    fn list(&mut self, filter: &Filter, before: Option<TaskId>, limit: usize) -> Result<Page, StoreError> {
        let to = before.unwrap_or(TaskId([0xFF; 16]));
        let from = filter.since.map_or(TaskId([0; 16]), TaskId::first_at);
        // The terms are written out, since an index of some rows only serves a query that repeats its condition.
        let states = match filter.state {
            None => String::new(),
            Some(TaskState::Done) => "state = 3 AND ".to_owned(),
            Some(state) if state.is_ended() => format!("state >= 4 AND state = {} AND ", state as u8),
            Some(_) => "state <= 2 AND ".to_owned(),
        };
        let sql =
            format!("SELECT {SHORT_COLUMNS} FROM tasks WHERE {states}id < ?1 AND id >= ?2 ORDER BY id DESC");
        let wants = |action: &str| filter.action.as_ref().is_none_or(|wanted| wanted == action);
        let keeps = |stored: &StoredTask| filter.state.is_none_or(|state| stored.state == state);
        self.page(&sql, params![to.0, from.0], limit, wants, keeps).map_err(|error| self.error(error))
    }

    fn history(&mut self, id: TaskId) -> Result<Vec<FailedAttempt>, StoreError> {
        let read = || {
            let mut select = self.connection.prepare_cached(
                "SELECT task, attempt, failed_at, worker, error_code, error FROM failed_attempts WHERE task = ?1 \
                 ORDER BY failed_at, attempt",
            )?;
            let rows = select.query_map([id.0], tables::read_attempt)?;
            rows.collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.error(error.into()))
    }
}
