//! Which store and which blob store the balancer is to have: from `--data`, `--store`, `--blobs` and what belongs to
//! them, by flag, variable or file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use reparto_balancer::bus::Address;
use reparto_balancer::storage::Durability;
use reparto_balancer::{BlobPlace, SharingSettings, StorePlace, StoreSettings};

use super::{Args, File, amqp, set};

/// Where background tasks are kept, in the current folder.
const DATA_FOLDER: &str = "reparto-data";

/// Largest `--blob-threshold`: larger payloads do not belong into rows.
const MOST_BLOB_THRESHOLD: u64 = 16 << 20;

/// Where background tasks are kept, if they are. A flag for a place goes before a file that wants none.
pub(super) fn settings(args: &Args, file: &File) -> Result<Option<StoreSettings>, String> {
    let is_flagged = args.data.is_some() || args.store.is_some() || args.blobs.is_some();
    if args.no_data || (!is_flagged && file.no_data == Some(true)) {
        sharing(args, file, None, None)?;
        return Ok(None);
    }
    let place: Option<StorePlace> = named("store", args.store.as_ref(), file.store.as_ref())?;
    let blobs: Option<BlobPlace> = named("blobs", args.blobs.as_ref(), file.blobs.as_ref())?;
    let sharing = sharing(args, file, place.as_ref(), blobs.as_ref())?;
    let data = args.data.as_ref().or(file.data.as_ref());
    let mut store = StoreSettings::new(data_folder(data.map(PathBuf::as_path), place.as_ref()));
    let durability = match &file.durability {
        Some(text) => Some(text.parse::<Durability>().map_err(|error| error.to_string())?),
        None => None,
    };
    if let Some(durability @ Durability::Interval(_)) = args.durability.or(durability)
        && let Some(place @ StorePlace::Postgres(_)) = &place
    {
        return Err(format!(
            "--durability {durability} is for the embedded store, and --store is {place}, which always waits for the \
             disk; leave one of them out"
        ));
    }
    set(&mut store.store, place, None);
    set(&mut store.blobs, blobs, None);
    store.sharing = sharing;
    set(&mut store.durability, args.durability, durability);
    set(&mut store.keep_results, args.keep_results, file.keep_results.map(|span| span.0));
    if let Some(size) = args.blob_threshold.or(file.blob_threshold.map(|size| size.0)) {
        if size > MOST_BLOB_THRESHOLD {
            return Err(format!("--blob-threshold {size} is more than a row can hold, 16MiB"));
        }
        store.blob_threshold = usize::try_from(size).unwrap_or(usize::MAX);
    }
    Ok(Some(store))
}

/// How work is shared with other balancers, if a bus is named; and whether what it needs is there.
fn sharing(
    args: &Args,
    file: &File,
    store: Option<&StorePlace>,
    blobs: Option<&BlobPlace>,
) -> Result<Option<SharingSettings>, String> {
    let (queues, workers) = amqp::settings(args, file)?;
    let Some(text) = args.bus.as_ref().or(file.bus.as_ref()) else {
        let flag = match (queues.is_empty(), workers.is_empty()) {
            (true, true) => return Ok(None),
            (false, _) => "--amqp-queue",
            (true, false) => "--amqp-worker",
        };
        return Err(format!("{flag} needs --bus amqp://USER:PASSWORD@HOST:PORT/VHOST, where its queue is"));
    };
    let bus = Address::parse(text).map_err(|error| error.to_string())?;
    if !matches!(store, Some(StorePlace::Postgres(_))) {
        return Err(
            "--bus needs --store postgres://USER:PASSWORD@HOST:PORT/DATABASE, the same at each of the balancers: it \
             says whose each task is"
                .to_owned(),
        );
    }
    if blobs.is_none() {
        return Err(
            "--bus needs --blobs s3://BUCKET?endpoint=URL&region=NAME, or --blobs file:DIR with a folder that all of the \
             balancers see: a task may run at another one than took it in"
                .to_owned(),
        );
    }
    Ok(Some(SharingSettings { queues, workers, ..SharingSettings::new(bus) }))
}

/// The data folder that was asked for, or the one that the embedded store's file stands in, or the usual one.
fn data_folder(asked: Option<&Path>, place: Option<&StorePlace>) -> PathBuf {
    match (asked, place) {
        (Some(folder), _) => folder.to_path_buf(),
        (None, Some(StorePlace::Sqlite(path))) => path.parent().unwrap_or(Path::new("")).to_path_buf(),
        (None, _) => PathBuf::from(DATA_FOLDER),
    }
}

/// What a flag or a variable names, or else the file.
fn named<T: FromStr>(flag: &str, args: Option<&String>, file: Option<&String>) -> Result<Option<T>, String>
where
    T::Err: std::fmt::Display,
{
    let read = |text: &String| text.parse().map_err(|error| format!("--{flag}: {error}"));
    args.or(file).map(read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        toml::from_str(text).expect("a good file")
    }

    fn places(args: &Args, text: &str) -> Option<(String, String)> {
        let store = settings(args, &file(text)).expect("good settings")?;
        Some((store.store.to_string(), store.blobs.to_string()))
    }

    fn shown(store: &str, blobs: &str) -> Option<(String, String)> {
        Some((store.to_owned(), blobs.to_owned()))
    }

    #[test]
    fn the_data_folder_is_the_flags_then_the_files_then_the_usual_one_and_may_be_none() {
        let in_folder =
            |folder: &str| shown(&format!("sqlite:{folder}/reparto.sqlite"), &format!("file:{folder}/blobs"));
        let flag = Args { data: Some("flag".into()), ..Args::default() };
        assert_eq!(places(&flag, "data = \"file\""), in_folder("flag"));
        assert_eq!(places(&flag, "no_data = true"), in_folder("flag"));
        assert_eq!(places(&Args::default(), "data = \"file\""), in_folder("file"));
        assert_eq!(places(&Args::default(), ""), in_folder("reparto-data"));
        assert_eq!(places(&Args::default(), "no_data = true"), None);
        assert_eq!(places(&Args { no_data: true, ..Args::default() }, "data = \"file\""), None);
        let wrong = file("durability = \"never\"");
        assert!(settings(&Args::default(), &wrong).is_err_and(|error| error.contains("'never'")));
    }

    #[test]
    fn the_stores_are_the_flags_then_the_files_and_what_is_not_named_is_in_the_data_folder() {
        let store = |url: &str| Args { store: Some(url.into()), ..Args::default() };
        assert_eq!(
            places(&store("sqlite:x/t.db"), "store = \"sqlite:y.db\""),
            shown("sqlite:x/t.db", "file:x/blobs")
        );
        assert_eq!(places(&store("sqlite:t.db"), "data = \"d\""), shown("sqlite:t.db", "file:d/blobs"));
        assert_eq!(places(&store("sqlite:t.db"), "no_data = true"), shown("sqlite:t.db", "file:blobs"));
        assert_eq!(
            places(&Args::default(), "store = \"postgres://ana:secret@db/tasks\""),
            shown("postgres://ana:***@db/tasks", "file:reparto-data/blobs")
        );
        let blobs = Args { blobs: Some("s3://bucket?region=x".into()), ..Args::default() };
        assert_eq!(
            places(&blobs, "blobs = \"file:y\""),
            shown("sqlite:reparto-data/reparto.sqlite", "s3://bucket?region=x")
        );
    }

    #[test]
    fn what_does_not_go_together_is_told_without_the_password() {
        let wrong = |args: &Args, text: &str| settings(args, &file(text)).expect_err("it is wrong");
        let store = |url: &str| Args { store: Some(url.into()), ..Args::default() };
        let sentence = wrong(&store("postgres://ana:secret@db/tasks"), "durability = \"interval:50ms\"");
        assert!(sentence.contains("--durability interval:50ms is for the embedded store"), "{sentence}");
        assert!(sentence.contains("postgres://ana:***@db/tasks"), "{sentence}");
        let sentence = wrong(&store("mysql://ana:secret@db/tasks"), "");
        assert!(sentence.contains("--store: 'mysql://ana:***@db/tasks' names no store"), "{sentence}");
        let sentence = wrong(&Args::default(), "blobs = \"bucket\"");
        assert!(sentence.contains("--blobs: 'bucket' names no blob store"), "{sentence}");
    }
}
