//! Which store and which blob store, as people name them, and passwords that are not shown.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A store for background tasks.
///
/// ```
/// use reparto_balancer::StorePlace;
/// let place: StorePlace = "postgres://ana:secret@db.example/tasks".parse()?;
/// assert_eq!(place.to_string(), "postgres://ana:***@db.example/tasks");
/// # Ok::<(), reparto_balancer::background::NotAPlace>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorePlace {
    /// The embedded store: a database's file. Its folder is locked by the balancer that has it.
    Sqlite(PathBuf),
    /// A PostgreSQL database: of the balancers that share it by a bus, or of the one that leads it while others wait.
    Postgres(SecretUrl),
}

/// A store for payloads and results that are too large for a row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlobPlace {
    /// A folder.
    File(PathBuf),
    /// A bucket.
    S3(SecretUrl),
}

/// A text names no store. It is shown without the password that it may hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' names no {what}; write {hint}")]
pub struct NotAPlace {
    text: String,
    what: &'static str,
    hint: &'static str,
}

impl StorePlace {
    /// Its kind, as the status report names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            StorePlace::Sqlite(_) => "sqlite",
            StorePlace::Postgres(_) => "postgres",
        }
    }
}

impl BlobPlace {
    /// Its kind, as the status report names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            BlobPlace::File(_) => "file",
            BlobPlace::S3(_) => "s3",
        }
    }
}

impl FromStr for StorePlace {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        match text.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Ok(StorePlace::Sqlite(path.into())),
            None if text.starts_with("postgres://") || text.starts_with("postgresql://") => {
                Ok(StorePlace::Postgres(SecretUrl::new(text)))
            }
            _ => Err(NotAPlace {
                text: without_passwords(text),
                what: "store",
                hint: "sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE",
            }),
        }
    }
}

impl FromStr for BlobPlace {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        match text.strip_prefix("file:") {
            Some(path) if !path.is_empty() => Ok(BlobPlace::File(path.into())),
            None if text.starts_with("s3://") => Ok(BlobPlace::S3(SecretUrl::new(text))),
            _ => Err(NotAPlace {
                text: without_passwords(text),
                what: "blob store",
                hint: "file:DIR or s3://BUCKET?endpoint=URL&region=NAME",
            }),
        }
    }
}

impl fmt::Display for StorePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorePlace::Sqlite(path) => write!(formatter, "sqlite:{}", path.display()),
            StorePlace::Postgres(url) => url.fmt(formatter),
        }
    }
}

impl fmt::Display for BlobPlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlobPlace::File(path) => write!(formatter, "file:{}", path.display()),
            BlobPlace::S3(url) => url.fmt(formatter),
        }
    }
}

/// The folder that a file stands in.
pub(super) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A URL that may hold a password. It is shown without it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Box<str>);

impl SecretUrl {
    /// Keeps a URL.
    #[must_use]
    pub fn new(url: &str) -> Self {
        SecretUrl(url.into())
    }

    /// The URL with its password, for whoever connects. Not to be shown.
    #[must_use]
    pub fn with_password(&self) -> &str {
        &self.0
    }

    /// Whether it holds a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        *without_passwords(&self.0) != *self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&without_passwords(&self.0))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", without_passwords(&self.0))
    }
}

/// What stands in the place of a password.
const HIDDEN: &str = "***";

/// A text with `***` in the place of each password of a URL in it: what stands between the user and the last `@`, and
/// the value of `password=`. It rather hides too much than too little.
#[must_use]
pub fn without_passwords(text: &str) -> String {
    let ends_url = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + "://".len());
        shown.push_str(before);
        let (url, others) = after.split_at(after.find(ends_url).unwrap_or(after.len()));
        let (user_and_password, place) = url.rfind('@').map_or(("", url), |at| url.split_at(at));
        match user_and_password.split_once(':') {
            Some((user, _)) => shown.extend([user, ":", HIDDEN]),
            None => shown.push_str(user_and_password),
        }
        shown.push_str(&without_value_of_password(place));
        rest = others;
    }
    shown.push_str(rest);
    shown
}

fn without_value_of_password(place: &str) -> String {
    const NAME: &str = "password=";
    let Some((before, value)) = place.split_once(NAME) else { return place.to_owned() };
    let others = value.find('&').map_or("", |end| &value[end..]);
    format!("{before}{NAME}{HIDDEN}{others}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_read_as_they_are_named() {
        assert_eq!("sqlite:x/tasks.db".parse(), Ok(StorePlace::Sqlite("x/tasks.db".into())));
        for url in ["postgres://ana@db/tasks", "postgresql://ana@db/tasks"] {
            assert_eq!(url.parse(), Ok(StorePlace::Postgres(SecretUrl::new(url))));
        }
        assert_eq!("file:/srv/blobs".parse(), Ok(BlobPlace::File("/srv/blobs".into())));
        assert_eq!("s3://b?region=x".parse(), Ok(BlobPlace::S3(SecretUrl::new("s3://b?region=x"))));
    }

    #[test]
    fn what_names_no_store_is_told_what_does_and_never_with_its_password() {
        for text in ["", "sqlite:", "tasks.db", "s3://bucket", "mysql://ana:secret@db/tasks"] {
            let error = text.parse::<StorePlace>().unwrap_err().to_string();
            assert!(error.contains("sqlite:PATH or postgres://") && !error.contains("secret"), "{error}");
        }
        for text in ["", "file:", "blobs", "https://key:secret@host/bucket"] {
            let error = text.parse::<BlobPlace>().unwrap_err().to_string();
            assert!(error.contains("file:DIR or s3://BUCKET") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn passwords_are_hidden_wherever_they_stand() {
        for (text, shown) in [
            ("postgres://ana:s:e/c?r@et@db:5432/tasks", "postgres://ana:***@db:5432/tasks"),
            ("postgres://ana@db/tasks", "postgres://ana@db/tasks"),
            ("postgres://db/tasks?password=secret&user=ana", "postgres://db/tasks?password=***&user=ana"),
            (
                "store = \"postgres://ana:secret@db/tasks\" # ana@home",
                "store = \"postgres://ana:***@db/tasks\" # ana@home",
            ),
            ("a postgres://a:x@h and s3://k:y@b", "a postgres://a:***@h and s3://k:***@b"),
            ("no URL: at all @ here", "no URL: at all @ here"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
        let place: StorePlace = "postgres://ana:secret@db/tasks".parse().unwrap();
        assert!(!format!("{place} {place:?}").contains("secret"));
        let StorePlace::Postgres(url) = place else { panic!("it is PostgreSQL's") };
        assert!(url.has_password() && url.with_password().contains("secret"));
    }

    #[test]
    fn a_file_without_a_folder_stands_in_the_current_one() {
        assert_eq!(folder_of(Path::new("tasks.db")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/tasks.db")), Path::new("a"));
    }
}
