use futures::TryStreamExt as _;

use super::*;
use crate::auth::testing::{Fixture, NOW, fixtures};
use crate::options::FileStore;

const OWNER: KeyId = KeyId::new(7);
const STRANGER: KeyId = KeyId::new(8);

/// Files in a folder, known to a database of the fixture.
struct Setup {
    files: Files,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new(fixture: &Fixture, limits: FileLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let contents = Contents::open(&FileStore::Folder(dir.path().to_path_buf())).unwrap();
        let (database, clock) = (fixture.keys.database().clone(), fixture.keys.clock().clone());
        Self { files: Files::new(database, contents, clock, Arc::new(limits)), dir }
    }

    async fn add(&self, text: &str, expires_after: Option<i64>) -> FileRecord {
        let mut upload = self.files.begin(OWNER).await.unwrap();
        upload.put(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
        let filename = "requests.jsonl".to_owned();
        let new = NewFile { purpose: Purpose::Batch, filename, expires_after };
        upload.finish(new).await.unwrap()
    }

    async fn read(&self, id: &FileId) -> Vec<u8> {
        let pieces: Vec<Bytes> = self.files.read(id).await.unwrap().try_collect().await.unwrap();
        pieces.concat()
    }

    /// Names in the folder.
    fn kept(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn all() -> ListFiles {
    ListFiles { purpose: None, limit: 100, newest_first: true, after: None }
}

#[tokio::test]
async fn a_file_is_its_owners_alone() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture, FileLimits::default());
        let file = setup.add("{}\n", None).await;
        assert_eq!(setup.files.get(OWNER, &file.id).await.unwrap(), file);
        assert_eq!(setup.read(&file.id).await, b"{}\n");
        assert_eq!(setup.files.read_range(&file.id, 1..2).await.unwrap(), "}");
        let strange = setup.files.get(STRANGER, &file.id).await;
        assert!(matches!(strange, Err(Error::NotFound { .. })), "{strange:?}");
        let strange = setup.files.delete(STRANGER, &file.id).await;
        assert!(matches!(strange, Err(Error::NotFound { .. })), "{strange:?}");
        assert!(setup.files.list(STRANGER, &all()).await.unwrap().items.is_empty());

        setup.files.delete(OWNER, &file.id).await.unwrap();
        let gone = setup.files.get(OWNER, &file.id).await;
        assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
        assert_eq!(setup.kept(), [""; 0]);
    }
}

#[tokio::test]
async fn lists_go_page_by_page_in_both_orders() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture, FileLimits::default());
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(setup.add("{}", None).await.id);
        }
        for newest_first in [true, false] {
            let mut wanted = ids.clone();
            if newest_first {
                wanted.reverse();
            }
            let (mut listed, mut after) = (Vec::new(), None);
            loop {
                let list = ListFiles { limit: 2, newest_first, after: after.take(), ..all() };
                let page = setup.files.list(OWNER, &list).await.unwrap();
                listed.extend(page.items.into_iter().map(|file| file.id));
                if !page.has_more {
                    break;
                }
                after = listed.last().map(|id| id.as_str().to_owned());
            }
            assert_eq!(listed, wanted);
        }
        let outputs = ListFiles { purpose: Some(Purpose::BatchOutput), ..all() };
        assert!(setup.files.list(OWNER, &outputs).await.unwrap().items.is_empty());
    }
}

#[tokio::test]
async fn what_is_too_much_is_refused() {
    let fixture = Fixture::sqlite().await;
    let limits = FileLimits { file_bytes_max: 4, files_per_key_max: 2, ..FileLimits::default() };
    let setup = Setup::new(&fixture, limits);
    let mut upload = setup.files.begin(OWNER).await.unwrap();
    upload.put(Bytes::from_static(b"1234")).await.unwrap();
    let more = upload.put(Bytes::from_static(b"5")).await;
    assert!(matches!(more, Err(Error::TooLarge { max: 4 })), "{more:?}");
    upload.abort().await;
    assert_eq!(setup.kept(), [""; 0]);
    setup.add("a", None).await;
    setup.add("b", None).await;
    let third = setup.files.begin(OWNER).await;
    assert!(matches!(third, Err(Error::TooMany { max: 2 })), "{third:?}");
    setup.files.begin(STRANGER).await.unwrap();
}

#[tokio::test]
async fn what_has_expired_is_gone_at_once_and_swept_later() {
    for fixture in &fixtures().await {
        let limits = FileLimits { expires_after: None, ..FileLimits::default() };
        let setup = Setup::new(fixture, limits);
        let short = setup.add("a", Some(3600)).await;
        let long = setup.add("b", None).await;
        assert_eq!((short.expires_at, long.expires_at), (Some(NOW + 3600), None));
        // Neither finished nor taken back, as after a crash.
        let mut upload = setup.files.begin(OWNER).await.unwrap();
        upload.put(Bytes::from_static(b"half")).await.unwrap();
        drop(upload);
        assert_eq!(setup.files.sweep().await.unwrap(), 0);

        fixture.set_time(NOW + 3600);
        assert!(setup.files.get(OWNER, &short.id).await.is_err());
        let left = setup.files.list(OWNER, &all()).await.unwrap().items;
        assert_eq!(left, std::slice::from_ref(&long));
        assert_eq!(setup.files.sweep().await.unwrap(), 1);
        fixture.set_time(NOW + 8 * 3600);
        assert_eq!(setup.files.sweep().await.unwrap(), 1, "the upload that never ended");
        assert_eq!(setup.kept(), [long.id.as_str()]);
    }
}
