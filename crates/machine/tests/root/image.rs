//! Layers that are ordinary, odd and hostile.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use perch_machine::{Digest, ImageLimits, ImageStore, Unpacked};
use sha2::Digest as _;
use tar::{Builder, EntryType, Header};

use crate::fixture::{Fixture, Tested, program};

pub(crate) const TESTS: &[crate::Test] = &[
    ("an_image_is_pushed_unpacked_and_run", an_image_is_pushed_unpacked_and_run),
    ("upper_layers_delete_and_hide", upper_layers_delete_and_hide),
    ("whiteouts_spare_their_own_layer", whiteouts_spare_their_own_layer),
    ("owners_modes_and_links_are_kept", owners_modes_and_links_are_kept),
    ("hostile_names_are_refused", hostile_names_are_refused),
    ("devices_and_pipes_are_refused_by_name", devices_and_pipes_are_refused_by_name),
    ("a_layer_beyond_its_limits_leaves_nothing", a_layer_beyond_its_limits_leaves_nothing),
    ("bombs_are_refused", bombs_are_refused),
    ("headers_that_ask_for_memory_are_refused", headers_that_ask_for_memory_are_refused),
    ("names_in_refusals_are_cut", names_in_refusals_are_cut),
    ("a_layer_that_is_not_what_the_config_says_is_refused", a_false_layer_is_refused),
];

pub(crate) struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry without the checks that the library makes on names.
    pub(crate) fn add(mut self, name: &str, kind: EntryType, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o6755 });
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).expect("writing to memory cannot fail");
        self
    }

    /// A file of so many bytes of which the archive holds none.
    pub(crate) fn hole(mut self, name: &str, size: u64) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        let size = format!("{size:011o}\0");
        let gnu = header.as_gnu_mut().expect("it was made as such");
        gnu.realsize.copy_from_slice(size.as_bytes());
        gnu.sparse[0].offset.copy_from_slice(size.as_bytes());
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
        header.set_cksum();
        self.0.append(&header, &b""[..]).expect("writing to memory cannot fail");
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.add(name, EntryType::Regular, "", content)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("writing to memory cannot fail")
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, Box<dyn Error>> {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("sha256:{hex}").parse()?)
}

fn push(store: &ImageStore, bytes: &[u8]) -> Result<Digest, Box<dyn Error>> {
    let id = store.begin_upload()?;
    store.append_upload(&id, None, bytes)?;
    store.finish_upload(&id, &digest(bytes)?)?;
    digest(bytes)
}

pub(crate) fn store(fixture: &Fixture, limits: ImageLimits) -> Result<ImageStore, Box<dyn Error>> {
    Ok(ImageStore::open(&fixture.dir.join("images"), limits)?)
}

type DiffOf = fn(&[u8]) -> Result<Digest, Box<dyn Error>>;

/// Pushes an image of these layers; `diff_of` tells what the config says of each.
fn image(
    store: &ImageStore,
    layers: &[Vec<u8>],
    diff_of: DiffOf,
) -> Result<Unpacked, Box<dyn Error>> {
    let mut blobs = Vec::new();
    let mut diffs = Vec::new();
    for layer in layers {
        diffs.push(diff_of(layer)?.to_string());
        blobs.push(serde_json::json!({ "digest": push(store, layer)?.to_string() }));
    }
    let config = serde_json::json!({
        "os": "linux",
        "config": { "Entrypoint": ["/hello"], "Env": ["PORT=9000"] },
        "rootfs": { "diff_ids": diffs },
    });
    let config = push(store, &serde_json::to_vec(&config)?)?;
    let manifest =
        serde_json::json!({ "config": { "digest": config.to_string() }, "layers": blobs });
    let info = store.put_manifest("app", "latest", "m/t", &serde_json::to_vec(&manifest)?)?;
    Ok(store.unpack(&info.digest)?)
}

pub(crate) fn unpack(fixture: &Fixture, layers: Vec<Layer>) -> Result<Unpacked, Box<dyn Error>> {
    let layers: Vec<_> = layers.into_iter().map(Layer::bytes).collect();
    image(&store(fixture, ImageLimits::standard())?, &layers, digest)
}

fn an_image_is_pushed_unpacked_and_run(fixture: &Fixture) -> Tested {
    let unpacked = unpack(fixture, vec![Layer::new().file("./hello", &program("hello")?)])?;
    let mut spec = fixture.spec("");
    spec.layers = unpacked.layers;
    spec.argv = unpacked.config.argv(None, None)?;
    let env = unpacked.config.env.iter().filter_map(|entry| entry.split_once('='));
    spec.env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let machine = fixture.launch(&spec)?;
    fixture.await_line("hello from no machine, listening on 0.0.0.0:9000")?;
    Ok(machine.kill()?)
}

fn upper_layers_delete_and_hide(fixture: &Fixture) -> Tested {
    let lower = Layer::new()
        .file("a/deleted", b"x")
        .file("a/kept", b"x")
        .file("b/hidden", b"x")
        .file("c", b"x")
        .file("bin/busybox", &fs::read("/bin/busybox")?);
    let upper = Layer::new()
        .file("a/.wh.deleted", b"")
        .file("b/new", b"x")
        .file("b/.wh..wh..opq", b"")
        .file("c/now/a/directory", b"x");
    let files = files(fixture, vec![lower, upper], "a b c")?;
    assert_eq!(files, ["a/kept", "b/new", "c/now/a/directory"]);
    Ok(())
}

/// What a Machine of these layers finds in these directories.
fn files(
    fixture: &Fixture,
    layers: Vec<Layer>,
    dirs: &str,
) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut spec = fixture.spec("");
    spec.layers = unpack(fixture, layers)?.layers;
    let find = format!("/bin/busybox find {dirs} -type f");
    spec.argv = find.split(' ').map(str::to_owned).collect();
    let mut lines = fixture.run(&spec)?.1;
    lines.sort();
    Ok(lines)
}

/// Whatever the order: a whiteout is about the lower layers, and a layer's own files stay.
fn whiteouts_spare_their_own_layer(fixture: &Fixture) -> Tested {
    let mut lower = Layer::new().file("bin/busybox", &fs::read("/bin/busybox")?);
    for dir in ["after", "before", "bare", "file"] {
        lower = lower.file(&format!("{dir}/lower"), b"x");
    }
    let upper = Layer::new()
        .add("after", EntryType::Directory, "", b"")
        .file("after/own", b"x")
        .file(".wh.after", b"")
        .file(".wh.before", b"")
        .add("before", EntryType::Directory, "", b"")
        .file("before/own", b"x")
        .file(".wh.bare", b"")
        .file("bare/own", b"x")
        .file("file", b"x")
        .file(".wh.file", b"");
    let files = files(fixture, vec![lower, upper], "after before bare file")?;
    assert_eq!(files, ["after/own", "bare/own", "before/own", "file"]);
    Ok(())
}

fn owners_modes_and_links_are_kept(fixture: &Fixture) -> Tested {
    let layer = Layer::new()
        .add("./", EntryType::Directory, "", b"")
        .add("dir", EntryType::Directory, "", b"")
        .file("dir/file", b"text")
        .add("dir/hard", EntryType::Link, "./dir/file", b"")
        .add("dir/soft", EntryType::Symlink, "../../../etc/passwd", b"")
        .file("dir/file2", b"first")
        .file("dir/file2", b"second")
        .file("tree/x/y", b"")
        .file("tree", b"a file now");
    let dir = unpack(fixture, vec![layer])?.layers.remove(0);
    let file = fs::metadata(dir.join("dir/file"))?;
    assert_eq!(
        (file.uid(), file.gid(), file.mode(), file.mtime()),
        (1000, 1001, 0o106_755, 1_000_000_000)
    );
    assert_eq!((file.nlink(), file.ino()), (2, fs::metadata(dir.join("dir/hard"))?.ino()));
    assert_eq!(fs::read_link(dir.join("dir/soft"))?, Path::new("../../../etc/passwd"));
    assert_eq!(fs::read_to_string(dir.join("dir/file2"))?, "second");
    assert_eq!(fs::read_to_string(dir.join("tree"))?, "a file now");
    assert_eq!(fs::metadata(dir.join("dir"))?.mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(&dir)?.uid(), 1000);
    Ok(())
}

fn hostile_names_are_refused(fixture: &Fixture) -> Tested {
    let victim = fixture.dir.join("victim");
    fs::write(&victim, "untouched")?;
    let outside = fixture.dir.to_string_lossy().into_owned();
    let cases = [
        (Layer::new().file("../../victim", b"x"), "contains '..'"),
        (Layer::new().file("/etc/passwd", b"x"), "absolute"),
        (Layer::new().add("l", EntryType::Symlink, &outside, b"").file("l/victim", b"x"), "link"),
        (Layer::new().add("l", EntryType::Symlink, ".", b"").file("l/file", b"x"), "link"),
        (Layer::new().add("h", EntryType::Link, "../victim", b""), "contains '..'"),
        (Layer::new().add("h", EntryType::Link, "etc/shadow", b""), "could not unpack"),
        (
            Layer::new().add("l", EntryType::Symlink, "/", b"").add(
                "h",
                EntryType::Link,
                "l/x",
                b"",
            ),
            "could not unpack",
        ),
        (Layer::new().file(".wh...", b""), "could not unpack"),
    ];
    for (layer, words) in cases {
        let error = unpack(fixture, vec![layer]).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{words}: {error:?}");
    }
    assert_eq!(fs::read_to_string(&victim)?, "untouched");
    assert_eq!(fs::read_dir(fixture.dir.join("images/layers"))?.count(), 0);
    assert_eq!(fs::read_dir(fixture.dir.join("images/scratch"))?.count(), 0);
    Ok(())
}

fn devices_and_pipes_are_refused_by_name(fixture: &Fixture) -> Tested {
    let cases = [
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a named pipe"),
    ];
    for (kind, words) in cases {
        let layer = Layer::new().file("dev/file", b"").add("dev/x", kind, "", b"");
        let error = unpack(fixture, vec![layer]).err().map(|error| error.to_string());
        let expected = format!("\"dev/x\" is refused: it is {words}; build the image without it");
        assert!(error.as_ref().is_some_and(|error| error.contains(&expected)), "{error:?}");
    }
    // A mark that deletes a name is an ordinary file in the archive.
    unpack(fixture, vec![Layer::new().file("dev/.wh.x", b"")])?;
    assert_eq!(fs::read_dir(fixture.dir.join("images/scratch"))?.count(), 0);
    Ok(())
}

fn a_layer_beyond_its_limits_leaves_nothing(fixture: &Fixture) -> Tested {
    let bytes = Layer::new().file("a", &[0; 4096]).file("b", &[0; 4096]).bytes();
    let few = ImageLimits { layer_entries_max: 1, ..ImageLimits::standard() };
    let small = ImageLimits { layer_bytes_max: 6000, ..ImageLimits::standard() };
    for (limits, words) in [(few, "more than 1 files"), (small, "more than 6000 bytes")] {
        let store = store(fixture, limits)?;
        let error =
            image(&store, std::slice::from_ref(&bytes), digest).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{words}: {error:?}");
    }
    assert_eq!(fs::read_dir(fixture.dir.join("images/layers"))?.count(), 0);
    Ok(())
}

/// What the archive's own length does not tell: implied directories, holes, and names that are read into memory.
fn bombs_are_refused(fixture: &Fixture) -> Tested {
    let deep = "d/".repeat(45) + "file";
    let few = ImageLimits { layer_entries_max: 40, ..ImageLimits::standard() };
    refuse(fixture, few, Layer::new().file(&deep, b""), "more than 40 files")?;

    let small = ImageLimits { layer_bytes_max: 1 << 20, ..ImageLimits::standard() };
    let mut sparse = Layer::new();
    for number in 0..3 {
        sparse = sparse.hole(&format!("hole{number}"), 500 << 10);
    }
    refuse(fixture, small, sparse, "more than 1048576 bytes")?;

    let lean = ImageLimits { unpack_memory_bytes_max: 48 << 20, ..ImageLimits::standard() };
    let long = vec![b'x'; 32 << 20];
    let name = Layer::new().add("././@LongLink", EntryType::GNULongName, "", &long).file("a", b"");
    refuse(fixture, lean, name, "out of memory")?;
    let name = Layer::new().add("././@LongLink", EntryType::GNULongName, "", &long).file("a", b"");
    refuse(fixture, ImageLimits::standard(), name, "the name is too long")?;

    let mut opaque = Layer::new();
    for number in 0..13_000 {
        opaque = opaque.file(&format!("{number:0>85}/.wh..wh..opq"), b"");
    }
    refuse(fixture, ImageLimits::standard(), opaque, "directories that hide others")
}

/// Windows of compressions, and records of names, are as large as the layer says.
fn headers_that_ask_for_memory_are_refused(fixture: &Fixture) -> Tested {
    let lean = || ImageLimits { unpack_memory_bytes_max: 48 << 20, ..ImageLimits::standard() };
    // A zstd frame of 128 MiB in blocks that repeat one byte: a window of 64 MiB, and the largest that can be said.
    let zstd = |window: u8| {
        let blocks = [0x02, 0x00, 0x10, b'x'].repeat(1024);
        [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, window], &blocks[..]].concat()
    };
    refuse_bytes(fixture, lean(), zstd(16 << 3), "memory")?;
    refuse_bytes(fixture, lean(), zstd(31 << 3), "window_size")?;
    let gzip = [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..], &vec![b'x'; 64 << 20]].concat();
    refuse_bytes(fixture, lean(), gzip, "could not read the archive")?;
    let long = vec![b'x'; 64 << 20];
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let layer = Layer::new().add("long", kind, "", &long).file("a", b"");
        refuse(fixture, lean(), layer, "memory")?;
    }
    Ok(())
}

fn names_in_refusals_are_cut(fixture: &Fixture) -> Tested {
    let long = vec![b'\x01'; 1 << 20];
    let layer = Layer::new().add("././@LongLink", EntryType::GNULongName, "", &long).file("a", b"");
    let store = store(fixture, ImageLimits::standard())?;
    let error = image(&store, &[layer.bytes()], digest).err().map(|error| error.to_string());
    let error = error.ok_or("it was not refused")?;
    assert!(error.len() < 500 && error.contains("the name is too long"), "{error}");
    Ok(())
}

fn refuse(fixture: &Fixture, limits: ImageLimits, layer: Layer, words: &str) -> Tested {
    refuse_bytes(fixture, limits, layer.bytes(), words)
}

fn refuse_bytes(fixture: &Fixture, limits: ImageLimits, layer: Vec<u8>, words: &str) -> Tested {
    let store = store(fixture, limits)?;
    let error = image(&store, &[layer], digest).err().map(|error| error.to_string());
    assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{words}: {error:?}");
    assert_eq!(fs::read_dir(fixture.dir.join("images/layers"))?.count(), 0);
    assert_eq!(fs::read_dir(fixture.dir.join("images/scratch"))?.count(), 0);
    Ok(())
}

fn a_false_layer_is_refused(fixture: &Fixture) -> Tested {
    let store = store(fixture, ImageLimits::standard())?;
    let error = image(&store, &[Layer::new().file("a", b"x").bytes()], |_| digest(b"other"));
    let error = error.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("the config says"), "{error}");
    Ok(())
}
