//! Images that want out of their root, or cannot run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use perch_testkit::{Entry, Host, Image};

use crate::bad_input::check_apps;
use crate::stage::{AWAKE, SNIPPET, check_answer, fly_toml, on_host, private_app};

fn file() -> Entry {
    Entry::File(b"owned\n".to_vec(), 0o644)
}

fn link(to: &str) -> Entry {
    Entry::Symlink(to.to_owned())
}

#[test]
fn archives_that_want_out_of_their_root_are_refused_by_name() {
    on_host(|host| {
        let shell = || Image::shell("busybox sleep 60");
        let out = host.dir().join("outside").to_string_lossy().into_owned();
        fs::create_dir(&out)?;
        let hard = Entry::Hardlink("../../../../etc/passwd".to_owned());
        check(host, shell()?.entry("../escaped", &file()), &["../escaped"])?;
        check(host, shell()?.entry("a/../../escaped", &file()), &["a/../../escaped"])?;
        check(host, shell()?.entry(&format!("{out}/escaped"), &file()), &["escaped"])?;
        let through = shell()?.entry("door", &link(&out)).entry("door/escaped", &file());
        check(host, through, &["door"])?;
        check(host, shell()?.entry("hard", &hard), &["etc/passwd"])?;
        check(host, shell()?.entry("disk", &Entry::Device(1, 1)), &["disk"])?;
        let left = fs::read_dir(&out)?.count();
        ensure!(left == 0, "{left} files were written to {out}");
        // Where `..` would lead to from any directory that an unpacking works in.
        let escaped = find_named(host.dir(), "escaped")?;
        ensure!(escaped.is_empty(), "written outside of the root: {escaped:?}");
        // The host still serves what is good.
        let address = private_app(host, "good", AWAKE)?;
        check_answer(&host.get(&address, 80, "/")?, "")
    });
}

#[test]
fn what_the_platform_writes_stays_inside_the_root() {
    on_host(|host| {
        let out = host.dir().join("outside");
        fs::create_dir(&out)?;
        let to = link(&out.to_string_lossy());
        let script = "exec busybox httpd -f -p 0.0.0.0:8081 -h /tmp";
        let image = Image::shell(script)?.entry("etc", &to).entry(".fly", &to);
        let image = image.write(&host.dir().join("links"))?;
        let dir = host.app_dir("links", &fly_toml("links", &image, SNIPPET))?;
        let args = ["launch", "--flycast", "--copy-config", "--name", "links", "-y"];
        // It may be refused or run, but nothing appears outside.
        host.fly_in(&dir, &args)?;
        let left: Vec<_> = fs::read_dir(&out)?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "written outside of the root: {left:?}");
        Ok(())
    });
}

#[test]
fn an_image_without_a_program_is_refused() {
    on_host(|host| check(host, Image::empty().entry("x", &file()), &["entrypoint"]));
}

#[test]
fn a_program_that_is_not_in_the_image_is_named() {
    on_host(|host| {
        let image = Image::empty().entry("x", &file()).entrypoint(&["/missing"]);
        let image = image.write(&host.dir().join("image"))?;
        let dir = host.app_dir("gone", &fly_toml("gone", &image, AWAKE))?;
        let args = ["launch", "--flycast", "--copy-config", "--name", "gone", "-y"];
        let output = host.fly_in(&dir, &args)?;
        output.says(&["/missing"])?;
        output.fails().map(drop)
    });
}

#[test]
fn a_program_that_exits_at_once_fails_the_deploy_with_its_last_words() {
    on_host(|host| {
        let image = Image::shell("echo out of luck; exit 3")?.write(&host.dir().join("image"))?;
        let dir = host.app_dir("brief", &fly_toml("brief", &image, AWAKE))?;
        let args = ["launch", "--flycast", "--copy-config", "--name", "brief", "-y"];
        let output = host.fly_in(&dir, &args)?;
        output.says(&["out of luck"])?;
        output.fails().map(drop)
    });
}

/// All paths below `dir` that end in `name`.
fn find_named(dir: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == name {
            found.push(entry.path());
        }
        if entry.file_type()?.is_dir() {
            found.extend(find_named(&entry.path(), name)?);
        }
    }
    Ok(found)
}

/// Launches an image that must be refused with all of `parts`, and leaves no app.
fn check(host: &Host, image: Image, parts: &[&str]) -> Result<()> {
    let path = host.dir().join("image");
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    let image = image.write(&path)?;
    let dir = host.app_dir("evil", &fly_toml("evil", &image, AWAKE))?;
    let args = ["launch", "--flycast", "--copy-config", "--name", "evil", "-y"];
    let output = host.fly_in(&dir, &args)?;
    output.says(parts)?;
    output.fails()?;
    if host.fly(&["apps", "list", "--quiet"])?.ok()?.contains("evil") {
        // The app may stay so that the next deploy can repair it, but without Machines.
        ensure!(host.machines("evil")?.is_empty(), "Machines of a refused image");
        host.fly(&["apps", "destroy", "evil", "--yes"])?.ok()?;
    }
    check_apps(host, &[])
}
