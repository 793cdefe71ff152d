//! Blobs in an S3 bucket, which several balancers can share.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use s3::creds::Credentials;
use s3::error::S3Error;
use s3::request::ResponseData;
use s3::{Bucket, Region};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use super::{BlobError, BlobInfo, BlobStore};
use crate::storage::task::BlobKey;

/// How long a request may take, its answer included.
const REQUEST: Duration = Duration::from_secs(60);
/// Objects that one request lists, at most.
const LISTED: usize = 1000;
/// The region when neither the URL nor the environment names one.
const DEFAULT_REGION: &str = "us-east-1";
/// Bytes of an answer's text that are shown, at most.
const SHOWN: usize = 200;

/// Blobs in an S3 bucket, each an object under its key.
pub struct S3Blobs {
    bucket: Box<Bucket>,
    /// Comes before each key: empty, or a path that ends with `/`.
    prefix: String,
    place: String,
}

impl std::fmt::Debug for S3Blobs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("S3Blobs").field("place", &self.place).finish_non_exhaustive()
    }
}

impl S3Blobs {
    /// Opens `s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]`.
    ///
    /// Without an endpoint it is Amazon's of that region; with one the bucket's name goes into the path. Without a
    /// region `AWS_REGION` and `AWS_DEFAULT_REGION` are asked. The credentials come from `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, or from `~/.aws/credentials`.
    ///
    /// # Errors
    ///
    /// [`BlobError::Open`] when the URL makes no sense, there are no credentials, or the bucket refuses them. A
    /// server that cannot be reached now is no error.
    pub fn open(url: &str) -> Result<S3Blobs, BlobError> {
        Self::with_credentials(url, || Credentials::new(None, None, None, None, None))
    }

    fn with_credentials(
        url: &str,
        credentials: impl FnOnce() -> Result<Credentials, s3::creds::error::CredentialsError>,
    ) -> Result<S3Blobs, BlobError> {
        // What is no URL of ours may hold anything, a password too, so it is not shown.
        let wrong = |reason: String| BlobError::Open { place: "s3://...".to_owned(), reason };
        let (bucket, prefix, endpoint, region) = read_url(url).map_err(wrong)?;
        let place = format!("s3://{bucket}/{prefix}");
        let wrong = |reason: String| BlobError::Open { place: place.clone(), reason };
        let region = region_of(endpoint.as_deref(), region).map_err(wrong)?;
        let credentials = credentials().map_err(|_| {
            wrong("there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned())
        })?;
        let mut bucket =
            Bucket::new(&bucket, region, credentials).map_err(|error| wrong(error.to_string()))?;
        bucket.set_request_timeout(Some(REQUEST));
        if endpoint.is_some() {
            bucket.set_path_style();
        }
        let blobs = S3Blobs { bucket, prefix, place };
        match blobs.bucket.list_page(blobs.prefix.clone(), None, None, None, Some(1)) {
            Ok(_) => {}
            Err(S3Error::HttpFailWithBody(status @ (301 | 400 | 401 | 403 | 404), text)) => {
                let reason = format!("the server answers {status}: {}", shown(&text));
                return Err(BlobError::Open { place: blobs.place, reason });
            }
            Err(error) => log::warn!("{}, and will try again", blobs.failed(&error)),
        }
        Ok(blobs)
    }

    fn path_of(&self, key: &BlobKey) -> String {
        format!("/{}{key}", self.prefix)
    }

    /// What an answer brings, if it is whole.
    fn whole(&self, answer: ResponseData) -> Result<Bytes, BlobError> {
        match cut_short(&answer.headers(), answer.bytes().len()) {
            None => Ok(answer.into_bytes()),
            Some(reason) => Err(BlobError::Unavailable { place: self.place.clone(), reason }),
        }
    }

    fn failed(&self, error: &S3Error) -> BlobError {
        let reason = match error {
            S3Error::HttpFailWithBody(status, text) => {
                format!("the server answers {status}: {}", shown(text))
            }
            other => other.to_string(),
        };
        BlobError::Unavailable { place: self.place.clone(), reason }
    }
}

/// Why an answer's body is not all that was sent, if it is not. The HTTP client takes a connection that ends early, since
/// the server was killed, for the end of the body.
fn cut_short(headers: &HashMap<String, String>, bytes: usize) -> Option<String> {
    let header = |name: &str| {
        let found = headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    };
    match header("content-length").map(str::parse::<usize>) {
        Some(Ok(length)) if length == bytes => None,
        Some(Ok(length)) => Some(format!("the answer ended after {bytes} of {length} bytes")),
        // Its end is marked, and a missing mark is an error of the client's.
        None if header("transfer-encoding").is_some() => None,
        Some(Err(_)) | None => Some("the answer does not say how long it is".to_owned()),
    }
}

/// The beginning of an answer's text, on one line.
fn shown(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    shown.replace(['\n', '\r'], " ")
}

/// Bucket, prefix, endpoint and region of a URL.
fn read_url(text: &str) -> Result<(String, String, Option<String>, Option<String>), String> {
    const HINT: &str = "a bucket is named as s3://BUCKET?endpoint=URL&region=NAME";
    let url = Url::parse(text).map_err(|error| format!("{error}; {HINT}"))?;
    let bucket = url.host_str().unwrap_or_default().to_owned();
    if url.scheme() != "s3" || bucket.is_empty() {
        return Err(HINT.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.port().is_some() {
        return Err(format!("it has more than a bucket's name before its path; {HINT}"));
    }
    let mut prefix = url.path().trim_matches('/').to_owned();
    if !prefix.is_empty() {
        prefix.push('/');
    }
    let (mut endpoint, mut region) = (None, None);
    for (name, value) in url.query_pairs() {
        match &*name {
            "endpoint" if value.contains('@') => {
                return Err("the endpoint names a user; the key comes from AWS_ACCESS_KEY_ID".to_owned());
            }
            "endpoint" if value.starts_with("http://") || value.starts_with("https://") => {
                endpoint = Some(value.trim_end_matches('/').to_owned());
            }
            "endpoint" => {
                return Err(format!("the endpoint '{value}' does not begin with http:// or https://"));
            }
            "region" => region = Some(value.into_owned()),
            other => return Err(format!("'{other}' is not known; {HINT}")),
        }
    }
    Ok((bucket, prefix, endpoint, region))
}

fn region_of(endpoint: Option<&str>, region: Option<String>) -> Result<Region, String> {
    let from_environment =
        || ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(|name| std::env::var(name).ok());
    let region = region.or_else(from_environment).unwrap_or_else(|| DEFAULT_REGION.to_owned());
    if let Some(endpoint) = endpoint {
        return Ok(Region::Custom { region, endpoint: endpoint.to_owned() });
    }
    match region.parse() {
        Ok(Region::Custom { .. }) | Err(_) => {
            Err(format!("the region '{region}' is not one of Amazon's; name the server with endpoint=URL"))
        }
        Ok(region) => Ok(region),
    }
}

impl BlobStore for S3Blobs {
    fn put(&self, key: &BlobKey, bytes: &[u8]) -> Result<(), BlobError> {
        self.bucket.put_object(self.path_of(key), bytes).map(|_| ()).map_err(|error| self.failed(&error))
    }

    fn get(&self, key: &BlobKey) -> Result<Option<Bytes>, BlobError> {
        match self.bucket.get_object(self.path_of(key)) {
            Ok(answer) => self.whole(answer).map(Some),
            // Also said of a bucket that is gone.
            Err(S3Error::HttpFailWithBody(404, text)) if !text.contains("NoSuchBucket") => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn delete(&self, key: &BlobKey) -> Result<(), BlobError> {
        match self.bucket.delete_object(self.path_of(key)) {
            Ok(_) => Ok(()),
            Err(S3Error::HttpFailWithBody(404, text)) if !text.contains("NoSuchBucket") => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn visit(&self, visit: &mut dyn FnMut(BlobInfo) -> bool) -> Result<(), BlobError> {
        let mut next = None;
        loop {
            let listed = self.bucket.list_page(self.prefix.clone(), None, next, None, Some(LISTED));
            let (page, _) = listed.map_err(|error| self.failed(&error))?;
            for object in page.contents {
                let Some(key) = object.key.strip_prefix(&*self.prefix).and_then(BlobKey::new) else {
                    continue;
                };
                // One whose time cannot be read counts as new, so that it is not taken for a left one.
                let put_at = OffsetDateTime::parse(&object.last_modified, &Rfc3339)
                    .map_or_else(|_| SystemTime::now(), SystemTime::from);
                if !visit(BlobInfo { key, put_at }) {
                    return Ok(());
                }
            }
            next = page.next_continuation_token;
            if next.is_none() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::blob::conformance::{BlobFixture, blob_conformance};
    use crate::storage::task::{BlobKind, TaskIds};

    /// A part of its own in the bucket that scripts/services makes.
    struct Prefix(String);

    fn bucket() -> String {
        std::env::var("REPARTO_S3_URL").unwrap_or_else(|_| {
            panic!("this test needs an S3 server; run: eval \"$(scripts/services up s3)\"")
        })
    }

    fn prefix() -> Prefix {
        let prefix = format!("s3://reparto/tests/{:032x}?", uuid::Uuid::new_v4().as_u128());
        Prefix(bucket().replacen("s3://reparto?", &prefix, 1))
    }

    impl BlobFixture for Prefix {
        fn open(&self) -> Box<dyn BlobStore> {
            Box::new(S3Blobs::open(&self.0).unwrap())
        }
    }

    blob_conformance!(super::tests::prefix);

    #[test]
    fn wrong_credentials_and_an_unknown_bucket_are_told_at_the_start() {
        let key = || Credentials::new(Some("GK000000000000000000000000"), Some("secret"), None, None, None);
        let error = S3Blobs::with_credentials(&bucket(), key).unwrap_err().to_string();
        assert!(
            error.contains("cannot open the blob store s3://reparto/: the server answers 403"),
            "{error}"
        );
        let error =
            S3Blobs::open(&bucket().replacen("s3://reparto?", "s3://nobodys?", 1)).unwrap_err().to_string();
        assert!(error.contains("the server answers 40"), "{error}");
    }

    #[test]
    fn a_server_that_is_away_is_told_by_each_request() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let key = || Credentials::new(Some("key"), Some("secret"), None, None, None);
        let url = format!("s3://reparto?endpoint=http://{closed}&region=garage");
        let blobs = S3Blobs::with_credentials(&url, key).unwrap();
        let key = BlobKey::for_task(TaskIds::new().next(0), BlobKind::Payload);
        assert!(matches!(blobs.put(&key, b"bytes"), Err(BlobError::Unavailable { .. })));
        assert!(matches!(blobs.get(&key), Err(BlobError::Unavailable { .. })));
    }

    /// A server that answers every request with these bytes, and closes the connection.
    fn answering(answer: &'static str) -> std::net::SocketAddr {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
                while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                    match stream.read(&mut bytes) {
                        Ok(count @ 1..) => request.extend_from_slice(&bytes[..count]),
                        Ok(0) | Err(_) => break,
                    }
                }
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        address
    }

    #[test]
    fn an_answer_that_ends_early_is_no_blob() {
        let get = |answer| {
            let key = || Credentials::new(Some("key"), Some("secret"), None, None, None);
            let url = format!("s3://reparto?endpoint=http://{}&region=garage", answering(answer));
            let blobs = S3Blobs::with_credentials(&url, key).unwrap();
            blobs.get(&BlobKey::for_task(TaskIds::new().next(0), BlobKind::Result))
        };
        let whole = get("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole");
        assert_eq!(whole.unwrap().unwrap(), "whole");
        // The server was killed before it had sent all, or anything, of the body.
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\na part",
            "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\na part\r\n",
            "HTTP/1.1 200 OK\r\n\r\nnobody knows",
        ] {
            let read = get(answer);
            assert!(matches!(read, Err(BlobError::Unavailable { .. })), "{answer:?}: {read:?}");
        }
    }

    #[test]
    fn a_wrong_url_is_told_what_is_right() {
        let key = || Credentials::new(Some("key"), Some("secret"), None, None, None);
        for (url, wanted) in [
            ("bucket", "s3://BUCKET?endpoint=URL"),
            ("http://bucket", "s3://BUCKET?endpoint=URL"),
            ("s3://?region=x", "s3://BUCKET?endpoint=URL"),
            ("s3://bucket?endpoint=127.0.0.1", "does not begin with http://"),
            ("s3://key:secret@bucket", "more than a bucket's name"),
            ("s3://bucket?endpoint=http://key:secret@host", "names a user"),
            ("s3://bucket?size=3", "'size' is not known"),
            ("s3://bucket?region=nowhere", "name the server with endpoint=URL"),
        ] {
            let error = S3Blobs::with_credentials(url, key).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains("secret@"), "{url}: {error}");
        }
    }
}
