//! An object store as a key-value store that is waited for: whole objects, ranges, lists, and parts of large
//! ones.
//!
//! What is put is there whole or not at all, and is durable when the call returns. Keys are relative to the
//! prefix's path in the bucket. Credentials come from the environment, as with the cloud's own tools
//! (`AWS_*`, `GOOGLE_*`, `AZURE_*`), and from the file that `SCRFS_CREDENTIALS` names. Not to be called from
//! async code.

use crate::prefix::PrefixError;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{MultipartId, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use scrfs::name::RelPath;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::runtime::Runtime;

/// A file of lines `NAME=VALUE` for the environment of the store: so that no command line has them.
const CREDENTIALS: &str = "SCRFS_CREDENTIALS";

/// Requests for small objects at once.
const READS_AT_ONCE: usize = 32;

/// What is known of an object without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

/// An upload of a large object.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    key: ObjectPath,
    id: MultipartId,
}

/// A path in a bucket.
#[derive(Debug)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    parts: Parts,
    base: ObjectPath,
    url: String,
    runtime: Runtime,
}

/// Not every trait of the library can be shown.
struct Parts(Arc<dyn MultipartStore>);

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

fn environment() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let Some(path) = std::env::var_os(CREDENTIALS) else {
        return all;
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => all.extend(text.lines().filter_map(|line| {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (name, value) = line.split_once('=')?;
            (!name.starts_with('#')).then(|| (name.trim().to_owned(), value.trim().to_owned()))
        })),
        Err(error) => tracing::error!(?path, %error, "the credentials cannot be read"),
    }
    all
}

impl Objects {
    /// The bucket and path of a URL.
    pub(super) fn open(url: &str) -> Result<Self, PrefixError> {
        let refuse = |why: String| PrefixError::Url {
            url: url.to_owned(),
            why,
        };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| refuse("it is not a URL".into()))?;
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        let at = format!("{scheme}://{bucket}");
        let known = environment();
        let failed = |error: object_store::Error| refuse(error.to_string());
        macro_rules! build {
            ($builder:ty, $start:literal) => {{
                let mut builder = <$builder>::new().with_url(&at);
                for (name, value) in &known {
                    let key = name.to_ascii_lowercase();
                    if key.starts_with($start)
                        && let Ok(key) = key.parse()
                    {
                        builder = builder.with_config(key, value);
                    }
                }
                builder
            }};
        }
        let (store, parts): (Arc<dyn ObjectStore>, Arc<dyn MultipartStore>) = match scheme {
            "s3" | "s3a" => {
                let endpoint = known.iter().any(|(name, value)| {
                    name.starts_with("AWS_ENDPOINT") && value.starts_with("http://")
                });
                let builder = build!(AmazonS3Builder, "aws_").with_allow_http(endpoint);
                let store = Arc::new(builder.build().map_err(failed)?);
                (store.clone(), store)
            }
            "gs" => {
                let builder = build!(GoogleCloudStorageBuilder, "google_");
                let store = Arc::new(builder.build().map_err(failed)?);
                (store.clone(), store)
            }
            "az" | "azure" | "abfs" | "abfss" => {
                let builder = build!(MicrosoftAzureBuilder, "azure_");
                let store = Arc::new(builder.build().map_err(failed)?);
                (store.clone(), store)
            }
            other => {
                let why = format!("`{other}` is not known; s3, gs and az are");
                return Err(refuse(why));
            }
        };
        Self::with(store, parts, path, url)
    }

    /// One of a test's own.
    pub(super) fn with(
        store: Arc<dyn ObjectStore>,
        parts: Arc<dyn MultipartStore>,
        path: &str,
        url: &str,
    ) -> Result<Self, PrefixError> {
        let refuse = |why: String| PrefixError::Url {
            url: url.to_owned(),
            why,
        };
        let base = ObjectPath::parse(path).map_err(|error| refuse(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("objects")
            .enable_all()
            .build()
            .map_err(|error| refuse(format!("no threads for it: {error}")))?;
        Ok(Self {
            store,
            parts: Parts(parts),
            base,
            url: url.trim_end_matches('/').to_owned(),
            runtime,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// As people would name it.
    pub(super) fn name_of(&self, key: &str) -> PathBuf {
        PathBuf::from(format!("{}/{key}", self.url))
    }

    fn at(&self, key: &str) -> Result<ObjectPath, PrefixError> {
        let whole = match self.base.as_ref() {
            "" => key.to_owned(),
            base => format!("{base}/{key}"),
        };
        ObjectPath::parse(whole).map_err(|error| PrefixError::Url {
            url: self.name_of(key).display().to_string(),
            why: error.to_string(),
        })
    }

    fn failed(
        &self,
        verb: &'static str,
        key: &str,
    ) -> impl FnOnce(object_store::Error) -> PrefixError + use<> {
        let path = self.name_of(key);
        move |source| PrefixError::Object { verb, path, source }
    }

    /// The object; `None` when there is none.
    pub(super) fn get(&self, key: &str) -> Result<Option<Bytes>, PrefixError> {
        let at = self.at(key)?;
        let got = self
            .runtime
            .block_on(async { self.store.get(&at).await?.bytes().await });
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", key)(error)),
        }
    }

    /// Several objects, many at once; `None` for those that are not there.
    pub(super) fn get_all(
        &self,
        keys: impl Iterator<Item = String>,
    ) -> Result<Vec<Option<Bytes>>, PrefixError> {
        let at = keys.map(|key| Ok((self.at(&key)?, key)));
        let at = at.collect::<Result<Vec<_>, PrefixError>>()?;
        let reads = at.into_iter().map(|(at, key)| async move {
            let got = async { self.store.get(&at).await?.bytes().await }.await;
            match got {
                Ok(bytes) => Ok(Some(bytes)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(self.failed("read", &key)(error)),
            }
        });
        let reads = futures_util::stream::iter(reads).buffered(READS_AT_ONCE);
        self.runtime.block_on(reads.try_collect())
    }

    /// A range of it, all of it.
    pub(super) fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, PrefixError> {
        let at = self.at(key)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let len = range.end - range.start;
        let got = self.runtime.block_on(self.store.get_range(&at, range));
        let bytes = got.map_err(self.failed("read", key))?;
        if bytes.len() as u64 != len {
            return Err(PrefixError::Io {
                verb: "read",
                path: self.name_of(key),
                source: std::io::ErrorKind::UnexpectedEof.into(),
            });
        }
        Ok(bytes)
    }

    /// Puts it, in place of what is there.
    pub(super) fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), PrefixError> {
        let at = self.at(key)?;
        let put = self.store.put(&at, PutPayload::from(bytes));
        let put = self.runtime.block_on(put);
        put.map(drop).map_err(self.failed("write", key))
    }

    /// Puts it, if there is none; whether it did. A store that cannot promise that looks first.
    pub(super) fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, PrefixError> {
        let at = self.at(key)?;
        let put = self
            .store
            .put_opts(&at, PutPayload::from(bytes.clone()), PutMode::Create.into());
        match self.runtime.block_on(put) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(
                object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. },
            ) => match self.get(key)? {
                Some(_) => Ok(false),
                None => self.put(key, bytes).map(|()| true),
            },
            Err(error) => Err(self.failed("make", key)(error)),
        }
    }

    /// Everything below a key, which is a whole component.
    pub(super) fn list(&self, below: &str) -> Result<Vec<Meta>, PrefixError> {
        let at = self.at(below)?;
        let base = match self.base.as_ref() {
            "" => 0,
            base => base.len() + 1,
        };
        let listed = self
            .runtime
            .block_on(self.store.list(Some(&at)).try_collect::<Vec<_>>());
        let listed = listed.map_err(self.failed("list", below))?;
        let meta = |found: object_store::ObjectMeta| Meta {
            key: found.location.as_ref().get(base..).unwrap_or("").to_owned(),
            size: found.size,
            modified: found.last_modified.into(),
        };
        let mut all: Vec<Meta> = listed.into_iter().map(meta).collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// What is known of one; `None` when there is none.
    pub(super) fn head(&self, key: &str) -> Result<Option<Meta>, PrefixError> {
        let at = self.at(key)?;
        match self.runtime.block_on(self.store.head(&at)) {
            Ok(found) => Ok(Some(Meta {
                key: key.to_owned(),
                size: found.size,
                modified: found.last_modified.into(),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("look at", key)(error)),
        }
    }

    /// Removes one; nothing there is fine.
    pub(super) fn remove(&self, key: &str) -> Result<(), PrefixError> {
        let at = self.at(key)?;
        match self.runtime.block_on(self.store.delete(&at)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", key)(error)),
        }
    }

    /// Removes everything below a key.
    pub(super) fn remove_all(&self, below: &str) -> Result<(), PrefixError> {
        for found in self.list(below)? {
            self.remove(&found.key)?;
        }
        Ok(())
    }

    /// Begins a large object.
    pub(super) fn begin(&self, key: &str) -> Result<Upload, PrefixError> {
        let at = self.at(key)?;
        let id = self.runtime.block_on(self.parts.0.create_multipart(&at));
        let id = id.map_err(self.failed("begin to write", key))?;
        Ok(Upload { key: at, id })
    }

    /// One part of it, in any order.
    pub(super) fn part(
        &self,
        key: &str,
        upload: &Upload,
        index: usize,
        bytes: Vec<u8>,
    ) -> Result<PartId, PrefixError> {
        let bytes = PutPayload::from(bytes);
        let put = self.parts.0.put_part(&upload.key, &upload.id, index, bytes);
        self.runtime
            .block_on(put)
            .map_err(self.failed("write a part of", key))
    }

    /// All parts are there: it is one object from now on.
    pub(super) fn end(
        &self,
        key: &str,
        upload: &Upload,
        parts: Vec<PartId>,
    ) -> Result<(), PrefixError> {
        let put = self
            .parts
            .0
            .complete_multipart(&upload.key, &upload.id, parts);
        let put = self.runtime.block_on(put);
        put.map(drop).map_err(self.failed("complete", key))
    }

    /// It will not be completed. What the store keeps of it costs money, and nothing else.
    pub(super) fn abort(&self, upload: &Upload) {
        let aborted = self.parts.0.abort_multipart(&upload.key, &upload.id);
        if let Err(error) = self.runtime.block_on(aborted) {
            tracing::warn!(key = %upload.key, %error, "an upload that failed cannot be taken back");
        }
    }
}

/// A path as part of a key: as it is where it can be, so that people find it; the rest as `%` and two
/// hexadecimal digits. No two paths are the same.
pub(super) fn key_of(path: &RelPath) -> String {
    encode(path.as_bytes())
}

pub(super) fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut key = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '%' | '\\' => {
                    let _ = write!(key, "%{:02X}", u32::from(letter));
                }
                letter if letter.is_ascii_control() => {
                    let _ = write!(key, "%{:02X}", u32::from(letter));
                }
                letter => key.push(letter),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(key, "%{byte:02X}");
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_readable_and_no_two_are_the_same() {
        assert_eq!(encode(b"a/rank 0.pt"), "a/rank 0.pt");
        assert_eq!(encode(b"a%FF"), "a%25FF");
        assert_eq!(encode(b"a\xff\n"), "a%FF%0A");
        assert_eq!(encode("\u{e9}".as_bytes()), "\u{e9}");
        for bytes in [&b"x%"[..], b"x\x01", b"x\xc3", "x\u{10ffff}".as_bytes()] {
            assert!(ObjectPath::parse(encode(bytes)).is_ok());
        }
    }
}
