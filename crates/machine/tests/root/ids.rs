//! Files that belong to the Machine: by mapped mounts, and by copies where the kernel cannot map.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use perch_machine::{Ids, ImageLimits, probe};
use rustix::fs::{FileType, Mode, XattrFlags};
use tar::EntryType;

use crate::fixture::{Fixture, Tested};
use crate::image::{Layer, store, unpack};

pub(crate) const TESTS: &[crate::Test] = &[
    ("a_machine_sees_its_own_ids", a_machine_sees_its_own_ids),
    ("a_machine_owns_what_it_may_and_no_more", a_machine_owns_what_it_may_and_no_more),
    ("a_copy_keeps_all_but_owners_and_capabilities", a_copy_keeps_all_but_owners),
    ("a_copy_is_made_once_per_layer_and_range", a_copy_is_made_once_per_layer_and_range),
    ("a_copy_that_fails_leaves_nothing", a_copy_that_fails_leaves_nothing),
    ("a_copy_cut_off_by_a_crash_is_made_anew", a_copy_cut_off_by_a_crash_is_made_anew),
    ("copies_go_with_their_app_and_their_layer", copies_go_with_their_app_and_their_layer),
    ("the_probe_tries_the_file_system", the_probe_tries_the_file_system),
];

const BASE: u32 = 3_000_000;

fn a_machine_sees_its_own_ids(fixture: &Fixture) -> Tested {
    let layer = Layer::new()
        .file("bin/busybox", &fs::read("/bin/busybox")?)
        .add("home", EntryType::Directory, "", b"")
        .file("home/file", b"x")
        .add("home/link", EntryType::Symlink, "file", b"");
    let mut spec = fixture.spec("");
    spec.layers = unpack(fixture, vec![layer])?.layers;
    let script = "/bin/busybox touch /home/new; /bin/busybox chown 7:8 /home/new
        /bin/busybox stat -c '%n %u:%g %a' /home /home/file /home/link /home/new /bin";
    spec.argv = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    let lines = fixture.run(&spec)?.1;
    assert_eq!(
        lines,
        [
            "/home 1000:1001 755",
            "/home/file 1000:1001 6755",
            "/home/link 1000:1001 777",
            "/home/new 7:8 644",
            "/bin 0:0 755",
        ]
    );
    let new = fs::metadata(fixture.machine_dir().join("fs/1/upper/home/new"))?;
    let shift = if spec.ids == Ids::Shifted { BASE } else { 0 };
    assert_eq!((new.uid(), new.gid()), (shift + 7, shift + 8));
    Ok(())
}

fn a_machine_owns_what_it_may_and_no_more(fixture: &Fixture) -> Tested {
    let script = "
        echo x >/etc/passwd && echo wrote
        /bin/busybox mkdir /new && echo made
        /bin/busybox rm -r /tmp && echo removed
        echo x 2>/dev/null >/.perch/init || echo kept";
    let lines = fixture.run(&fixture.spec(script))?.1;
    assert_eq!(lines, ["wrote", "made", "removed", "kept"]);
    Ok(())
}

fn odd_layer() -> Layer {
    Layer::new()
        .add("./", EntryType::Directory, "", b"")
        .add("dir", EntryType::Directory, "", b"")
        .file("dir/file", b"text")
        .add("dir/hard", EntryType::Link, "dir/file", b"")
        .add("dir/soft", EntryType::Symlink, "/etc/passwd", b"")
        .file("dir/.wh.gone", b"")
        .file("dir/.wh..wh..opq", b"")
        .file("dir/more/deep", b"y")
}

fn a_copy_keeps_all_but_owners(fixture: &Fixture) -> Tested {
    // A capability for everybody's root, as a layer would have it if unpacking kept it: version 2, CAP_NET_RAW.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let before = fs::symlink_metadata("/etc/passwd")?.uid();
    let unpacked = unpack(fixture, vec![odd_layer()])?;
    let from = unpacked.layers[0].clone();
    rustix::fs::setxattr(
        from.join("dir/file"),
        "security.capability",
        &CAPABILITY,
        XattrFlags::empty(),
    )?;
    fs::write(from.join("file70"), "")?;
    std::os::unix::fs::chown(from.join("file70"), Some(70_000), Some(70_000))?;
    let to = store(fixture, ImageLimits::standard())?.shift(&unpacked, BASE)?.layers.remove(0);
    let file = fs::metadata(to.join("dir/file"))?;
    assert_eq!((file.uid(), file.gid(), file.mode()), (BASE + 1000, BASE + 1001, 0o106_755));
    assert_eq!((file.mtime(), file.nlink()), (1_000_000_000, 2));
    assert_eq!(file.ino(), fs::metadata(to.join("dir/hard"))?.ino());
    assert_eq!(fs::read_to_string(to.join("dir/hard"))?, "text");
    assert_eq!(xattr(&to.join("dir/file"), "security.capability"), None);
    let soft = fs::symlink_metadata(to.join("dir/soft"))?;
    assert_eq!((soft.uid(), soft.mtime()), (BASE + 1000, 1_000_000_000));
    assert_eq!(fs::read_link(to.join("dir/soft"))?, Path::new("/etc/passwd"));
    assert_eq!(fs::symlink_metadata("/etc/passwd")?.uid(), before);
    let gone = fs::symlink_metadata(to.join("dir/gone"))?;
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0));
    assert_eq!(xattr(&to.join("dir"), "trusted.overlay.opaque"), Some(b"y".to_vec()));
    assert_eq!(fs::metadata(to.join("dir"))?.mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(to.join("dir/more/deep"))?.uid(), BASE + 1000);
    assert_eq!(fs::metadata(&to)?.uid(), BASE + 1000);
    assert_eq!(fs::metadata(to.join("file70"))?.uid(), BASE + 65_534);
    // The layer itself is as it was.
    assert_eq!(fs::metadata(from.join("dir/file"))?.uid(), 1000);
    Ok(())
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 64];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

fn a_copy_is_made_once_per_layer_and_range(fixture: &Fixture) -> Tested {
    let unpacked = unpack(fixture, vec![odd_layer()])?;
    let store = store(fixture, ImageLimits::standard())?;
    let first = store.shift(&unpacked, BASE)?;
    let inode = fs::metadata(&first.layers[0])?.ino();
    assert_eq!(store.shift(&unpacked, BASE)?, first);
    assert_eq!(fs::metadata(&first.layers[0])?.ino(), inode);
    let other = store.shift(&unpacked, 2 * BASE)?;
    assert_ne!(other.layers, first.layers);
    assert_eq!(fs::metadata(other.layers[0].join("dir/file"))?.uid(), 2 * BASE + 1000);
    assert_eq!((first.config, first.manifest), (unpacked.config, unpacked.manifest));
    Ok(())
}

fn a_copy_that_fails_leaves_nothing(fixture: &Fixture) -> Tested {
    let unpacked = unpack(fixture, vec![odd_layer()])?;
    let layer = unpacked.layers[0].clone();
    let device = layer.join("dir/null");
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, &device, FileType::CharacterDevice, Mode::RUSR, null)?;
    let store = store(fixture, ImageLimits::standard())?;
    let error = store.shift(&unpacked, BASE).err().ok_or("a device was copied")?;
    assert!(error.to_string().contains(&*layer.to_string_lossy()), "{error}");
    assert_eq!(names(&fixture.dir.join("images/scratch"))?.len(), 0);
    assert_eq!(names(&fixture.dir.join(format!("images/shifted/{BASE}")))?.len(), 0);
    fs::remove_file(device)?;
    assert!(store.shift(&unpacked, BASE)?.layers[0].join("dir/file").exists());
    Ok(())
}

fn a_copy_cut_off_by_a_crash_is_made_anew(fixture: &Fixture) -> Tested {
    let unpacked = unpack(fixture, vec![odd_layer()])?;
    let draft = fixture.dir.join("images/scratch/half/dir");
    fs::create_dir_all(&draft)?;
    symlink("/etc", draft.join("link"))?;
    let store = store(fixture, ImageLimits::standard())?;
    assert_eq!(names(&fixture.dir.join("images/scratch"))?.len(), 0);
    assert!(Path::new("/etc/passwd").exists());
    assert!(store.shift(&unpacked, BASE)?.layers[0].join("dir/more/deep").exists());
    Ok(())
}

fn names(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn copies_go_with_their_app_and_their_layer(fixture: &Fixture) -> Tested {
    let unpacked = unpack(fixture, vec![odd_layer()])?;
    let store = store(fixture, ImageLimits::standard())?;
    let (first, second) = (store.shift(&unpacked, BASE)?, store.shift(&unpacked, 2 * BASE)?);
    store.retain_shifted(&[BASE])?;
    assert!(first.layers[0].exists());
    assert!(!second.layers[0].exists());
    fs::remove_dir_all(&unpacked.layers[0])?;
    store.retain_shifted(&[BASE])?;
    assert!(!first.layers[0].exists());
    store.remove_shifted(BASE)?;
    store.remove_shifted(BASE)?;
    assert_eq!(names(&fixture.dir.join("images/shifted"))?.len(), 0);
    Ok(())
}

/// ramfs is a file system whose mounts cannot be mapped, on any kernel: there the fallback is not pretended.
fn the_probe_tries_the_file_system(fixture: &Fixture) -> Tested {
    assert_eq!(probe(&fixture.dir)?.ids, Ids::Mapped);
    let dir = fixture.dir.join("ramfs");
    fs::create_dir(&dir)?;
    let mounted = Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&dir).status()?;
    assert!(mounted.success());
    let found = probe(&dir);
    let left = names(&dir);
    assert!(Command::new("umount").arg(&dir).status()?.success());
    let found = found?;
    assert_eq!(found.ids, Ids::Shifted);
    assert!(found.reason.contains("could not map the ids of"), "{}", found.reason);
    assert_eq!(left?.len(), 0);
    assert!(probe(Path::new("/proc")).is_err());
    Ok(())
}
