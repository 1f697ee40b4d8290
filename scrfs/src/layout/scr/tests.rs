//! Against bytes that were written down by hand, after SCR's description of its files.

use super::*;
use proptest::prelude::*;

/// One dataset, `ckpt.6`: complete, two files of 12 bytes; and the key for its name.
#[rustfmt::skip]
const INDEX: &[u8] = b"\x95\x1f\xc3\xf5\x00\x01\x00\x01\
    \x00\x00\x00\x00\x00\x00\x01\x58\x00\x00\x00\x00\
    \x00\x00\x00\x04\
    VERSION\0\x00\x00\x00\x01\
        2\0\x00\x00\x00\x00\
    CURRENT\0\x00\x00\x00\x01\
        ckpt.6\0\x00\x00\x00\x00\
    NAME\0\x00\x00\x00\x01\
        ckpt.6\0\x00\x00\x00\x01\
            DSET\0\x00\x00\x00\x01\
                6\0\x00\x00\x00\x00\
    DSET\0\x00\x00\x00\x02\
        6\0\x00\x00\x00\x03\
            COMPLETE\0\x00\x00\x00\x01\
                1\0\x00\x00\x00\x00\
            FLUSHED\0\x00\x00\x00\x01\
                2026-01-02T03:04:05\0\x00\x00\x00\x00\
            DSET\0\x00\x00\x00\x07\
                ID\0\x00\x00\x00\x01\
                    6\0\x00\x00\x00\x00\
                NAME\0\x00\x00\x00\x01\
                    ckpt.6\0\x00\x00\x00\x00\
                FLAG_CKPT\0\x00\x00\x00\x01\
                    1\0\x00\x00\x00\x00\
                FLAG_OUTPUT\0\x00\x00\x00\x01\
                    0\0\x00\x00\x00\x00\
                CREATED\0\x00\x00\x00\x01\
                    1767322000000000\0\x00\x00\x00\x00\
                FILES\0\x00\x00\x00\x01\
                    2\0\x00\x00\x00\x00\
                SIZE\0\x00\x00\x00\x01\
                    12\0\x00\x00\x00\x00\
        7\0\x00\x00\x00\x01\
            COMPLETE\0\x00\x00\x00\x01\
                0\0\x00\x00\x00\x00";

#[test]
fn an_index_is_read() {
    let index = ScrIndex::decode(INDEX).expect("an index");
    let name = Name::new(b"ckpt.6").expect("a name");
    assert_eq!(index.current.as_ref(), Some(&name));
    let expected = ScrDataset {
        id: 6,
        name,
        complete: true,
        failed: false,
        checkpoint: true,
        output: false,
        created_us: Some(1_767_322_000_000_000),
        flushed: Some("2026-01-02T03:04:05".into()),
        files: Some(2),
        bytes: Some(12),
    };
    // The seventh has no name yet.
    assert_eq!(index.datasets, [expected]);
}

/// With a checksum, that of "123456789" in the tables for CRC-32 being cbf43926.
#[test]
fn a_checksum_is_held_against_the_bytes() {
    let mut bytes = b"\x95\x1f\xc3\xf5\x00\x01\x00\x01\
        \x00\x00\x00\x00\x00\x00\x00\x1c\x00\x00\x00\x01\
        \x00\x00\x00\x00"
        .to_vec();
    let crc = |bytes: &[u8]| checksum(CrcAlgorithm::Crc32IsoHdlc, bytes) as u32;
    assert_eq!(crc(b"123456789"), 0xcbf4_3926);
    let sum = crc(&bytes);
    bytes.extend(sum.to_be_bytes());
    assert_eq!(Tree::decode(&bytes), Ok(Tree::default()));
    bytes[27] ^= 1;
    assert!(matches!(
        Tree::decode(&bytes),
        Err(ScrError::Checksum { .. })
    ));
}

#[rustfmt::skip]
const LEAF: &[u8] = b"\x95\x1f\xc3\xf5\x00\x01\x00\x01\
    \x00\x00\x00\x00\x00\x00\x00\x69\x00\x00\x00\x00\
    \x00\x00\x00\x02\
    LEVEL\0\x00\x00\x00\x01\
        0\0\x00\x00\x00\x00\
    RANK\0\x00\x00\x00\x02\
        0\0\x00\x00\x00\x01\
            FILE\0\x00\x00\x00\x01\
                ckpt.6/a\0\x00\x00\x00\x00\
        1\0\x00\x00\x00\x01\
            FILE\0\x00\x00\x00\x01\
                ckpt.6/b\0\x00\x00\x00\x00";

#[test]
fn the_files_of_all_ranks_are_found() {
    let Ok(Rank2File::Files(files)) = Rank2File::decode(LEAF) else {
        panic!("{:?}", Rank2File::decode(LEAF));
    };
    let files: Vec<_> = files.iter().map(RelPath::as_bytes).collect();
    assert_eq!(files, [b"ckpt.6/a", b"ckpt.6/b"]);
    let mut upper = LEAF.to_vec();
    let at = upper.windows(6).position(|it| it == b"LEVEL\0");
    upper[at.expect("a level") + 10] = b'1';
    // Names of further files lie beside the first.
    assert!(matches!(
        Rank2File::decode(&upper),
        Err(ScrError::Outside(_))
    ));
    for byte in &mut upper {
        if *byte == b'/' {
            *byte = b'.';
        }
    }
    let below = vec!["ckpt.6.a".to_owned(), "ckpt.6.b".to_owned()];
    assert_eq!(Rank2File::decode(&upper), Ok(Rank2File::Below(below)));
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    let mut bytes = LEAF.to_vec();
    let at = bytes
        .windows(8)
        .position(|it| it == b"ckpt.6/a")
        .expect("a path");
    bytes[at..at + 8].copy_from_slice(b"../../.a");
    assert_eq!(
        Rank2File::decode(&bytes),
        Err(ScrError::Outside("../../.a".into()))
    );
}

#[test]
fn a_tree_that_is_too_deep_or_says_too_much_is_refused() {
    let deep = [&b"a\0\x00\x00\x00\x01"[..]; 1000].concat();
    let whole = |tree: &[u8]| {
        let mut bytes = INDEX[..8].to_vec();
        bytes.extend((20 + tree.len() as u64).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(tree);
        bytes
    };
    let deep = [&b"\x00\x00\x00\x01"[..], &deep].concat();
    assert!(matches!(
        Tree::decode(&whole(&deep)),
        Err(ScrError::Broken(_))
    ));
    assert!(matches!(
        Tree::decode(&whole(&[0xff; 4])),
        Err(ScrError::Broken(_))
    ));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = (ScrIndex::decode(&bytes), Rank2File::decode(&bytes));
    }

    #[test]
    fn changed_bytes_never_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        for sample in [INDEX, LEAF] {
            let mut bytes = sample.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = (ScrIndex::decode(&bytes), Rank2File::decode(&bytes));
            bytes.truncate(cut.index(bytes.len()));
            // Its length is right, so that the tree is looked at.
            if bytes.len() >= 16 {
                let len = bytes.len() as u64;
                bytes[8..16].copy_from_slice(&len.to_be_bytes());
            }
            let _ = (ScrIndex::decode(&bytes), Rank2File::decode(&bytes));
        }
    }
}
