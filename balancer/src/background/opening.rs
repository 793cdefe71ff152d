//! Opening the stores that the settings name. A store that balancers share may have to be waited for.

use std::fmt;
use std::sync::Arc;

use super::StoreSettings;
use super::places::{BlobPlace, StorePlace, folder_of};
use super::sharing::{OpenedSharing, SharingSettings};
use crate::bus::BusError;
use crate::storage::{
    BlobError, BlobStore, DataFolder, FileBlobs, PostgresStore, S3Blobs, SharedPostgresStore, SqliteStore,
    Standby, Store, StoreError,
};

/// Stores that are open, and the settings that they were opened by.
pub struct OpenedStore {
    pub(super) settings: StoreSettings,
    pub(super) store: Box<dyn Store>,
    pub(super) blobs: Arc<dyn BlobStore>,
    pub(super) sharing: Option<OpenedSharing>,
}

impl fmt::Debug for OpenedStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OpenedStore").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl StoreSettings {
    /// Opens the stores. Where another balancer leads, or a database is away, it waits: `report` is told why whenever
    /// that changes, and `goes_on` is asked about once a second whether to wait on; `None` when it said no.
    ///
    /// # Errors
    /// The data folder is in use, a store cannot be opened, or what is in it cannot be read.
    pub fn open(
        &self,
        report: impl FnMut(&Standby),
        goes_on: impl FnMut() -> bool,
    ) -> Result<Option<OpenedStore>, StoreError> {
        if let Some(sharing) = &self.sharing {
            return self.join(sharing, report, goes_on);
        }
        let (store, blobs): (Box<dyn Store>, _) = match &self.store {
            StorePlace::Sqlite(path) => {
                // The lock on the folder comes before all that is done in it.
                let folder = DataFolder::lock(folder_of(path))?;
                let store = SqliteStore::open_in(folder, path, self.durability)?;
                (Box::new(store), self.open_blobs()?)
            }
            StorePlace::Postgres(url) => {
                // What is wrong with the blob store is told now, and not when this balancer takes over.
                let blobs = self.open_blobs()?;
                match PostgresStore::lead(url.with_password(), report, goes_on)? {
                    Some(store) => (Box::new(store), blobs),
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(OpenedStore { settings: self.clone(), store, blobs, sharing: None }))
    }

    /// Joins the balancers that share a database and a bus.
    fn join(
        &self,
        sharing: &SharingSettings,
        report: impl FnMut(&Standby),
        goes_on: impl FnMut() -> bool,
    ) -> Result<Option<OpenedStore>, StoreError> {
        let StorePlace::Postgres(url) = &self.store else {
            let reason = "balancers that share a bus need --store postgres://...".to_owned();
            return Err(StoreError::Open { place: self.store.to_string(), reason });
        };
        match sharing.bus.check() {
            Ok(()) => {}
            Err(BusError::Refused { place, reason }) => return Err(StoreError::Open { place, reason }),
            // It is tried again by whoever needs it.
            Err(error) => log::warn!("{error}"),
        }
        let blobs = self.open_blobs()?;
        let Some(store) = SharedPostgresStore::join(url.with_password(), &sharing.share, report, goes_on)?
        else {
            return Ok(None);
        };
        let sharing = OpenedSharing {
            settings: sharing.clone(),
            hearing: store.hearing(),
            installation: store.installation(),
        };
        Ok(Some(OpenedStore {
            settings: self.clone(),
            store: Box::new(store),
            blobs,
            sharing: Some(sharing),
        }))
    }

    fn open_blobs(&self) -> Result<Arc<dyn BlobStore>, StoreError> {
        let opened: Result<Arc<dyn BlobStore>, BlobError> = match &self.blobs {
            BlobPlace::File(folder) => FileBlobs::open(folder).map(|blobs| Arc::new(blobs) as _),
            BlobPlace::S3(url) => S3Blobs::open(url.with_password()).map(|blobs| Arc::new(blobs) as _),
        };
        opened.map_err(|error| match error {
            BlobError::Open { place, reason } | BlobError::Unavailable { place, reason } => {
                StoreError::Open { place: format!("the blob store {place}"), reason }
            }
        })
    }
}
