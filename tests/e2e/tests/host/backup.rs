//! Backups: made while the server works, restored elsewhere or in place, refused when they are not what they should be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entry, Host, Image, Network, Output};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, SOON, check_answer, on, on_host, private_app, private_app_of,
    wait_asleep,
};

/// Prunes what nothing names after a second.
const IMPATIENT: &str = "auto_stop_after = \"1s\"\nimage_grace = \"1s\"\n";

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn perch(host: &Host, data: &Path, args: &[&str]) -> Result<Output> {
    host.perch(&[args, &["--data-dir", &text(data)]].concat())
}

/// Makes a backup with a name in the test's directory.
fn backup(host: &Host, name: &str) -> Result<PathBuf> {
    let file = host.dir().join(name);
    perch(host, &host.data_dir(), &["backup", &text(&file)])?.ok()?;
    Ok(file)
}

fn restore(host: &Host, file: &Path, more: &[&str]) -> Result<Output> {
    perch(host, &host.data_dir(), &[&["restore", &text(file)], more].concat())
}

fn check_refused(output: &Output, words: &[&str]) -> Result<()> {
    ensure!(output.status.code() == Some(1), "not refused: {output}");
    for word in words {
        ensure!(output.stderr.contains(word), "{output} lacks {word}");
    }
    Ok(())
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

#[test]
fn a_backup_of_a_running_server_is_a_server_elsewhere_and_a_request_wakes_its_app() {
    on_host(|host| {
        // As a killed backup leaves it.
        let left = host.dir().join(".perch-backup-left");
        fs::create_dir(&left)?;
        fs::write(left.join("store.db"), "half")?;
        private_app(host, "asleep", SNIPPET)?;
        private_app(host, "awake", AWAKE)?;
        host.fly(&["ips", "allocate-v4", "--shared", "-a", "awake"])?.ok()?;
        perch(host, &host.data_dir(), &["token", "create", "--name", "ci"])?.ok()?;
        wait_asleep(host, "asleep")?;
        let file = backup(host, "host.perch")?;
        ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "others may read it");
        let again = perch(host, &host.data_dir(), &["backup", &text(&file)])?;
        check_refused(&again, &["is there already", "--force"])?;
        perch(host, &host.data_dir(), &["backup", &text(&file), "--force", "--logs"])?.ok()?;
        ensure!(host.states("awake")?.iter().all(|it| it == "started"), "a Machine was disturbed");
        ensure!(!left.exists(), "what a killed backup left is still there");

        let mut other = Host::bare(Network::Open)?;
        other.configure(QUICK_SLEEP);
        restore(&other, &file, &[])?.says(&["2 apps, 4 Machines"])?;
        other.start_server()?;
        other.wait_all("awake", "started", SOON)?;
        ensure!(other.states("asleep")? == ["stopped", "stopped"], "an app woke by itself");
        for app in ["asleep", "awake"] {
            let ids = |host: &Host| -> Result<Vec<String>> {
                Ok(host.machines(app)?.into_iter().map(|machine| machine.id).collect())
            };
            ensure!(ids(host)? == ids(&other)?, "{app} has other Machines");
            ensure!(host.flycast(app)? == other.flycast(app)?, "{app} has another address");
            check_answer(&other.get(&other.flycast(app)?, 80, "/")?, "Hello")?;
        }
        ensure!(host.ips("awake")?.len() == other.ips("awake")?.len(), "an address is missing");
        perch(&other, &other.data_dir(), &["token", "list"])?.says(&["ci"])?;
        let id = other.machines("asleep")?[0].id.clone();
        let events = other.api(&format!("/v1/apps/asleep/machines/{id}"))?["events"].to_string();
        ensure!(events.contains("launch"), "its history is gone: {events}");
        other.fly(&["logs", "-a", "awake", "--no-tail"])?.ok()?;
        Ok(())
    });
}

#[test]
fn backups_beside_deploys_and_pruning_are_whole() {
    on(
        || Host::start_with(Network::Open, IMPATIENT),
        |host| {
            let done = AtomicBool::new(false);
            let files = std::thread::scope(|scope| {
                let deploying = scope.spawn(|| deploy_and_destroy(host, &done));
                let files: Result<Vec<PathBuf>> =
                    (0..12).map(|number| backup(host, &format!("{number}.perch"))).collect();
                done.store(true, Ordering::SeqCst);
                deploying.join().map_err(|_| anyhow::anyhow!("the deploys ended badly"))??;
                files
            })?;
            let data = host.dir().join("restored");
            let mut images = 0;
            for file in files {
                let restored = perch(host, &data, &["restore", &text(&file)])?;
                ensure!(!restored.stderr.contains("warning"), "not whole: {restored}");
                restored.ok()?;
                images += fs::read_dir(data.join("images/manifests"))?.count();
                fs::remove_dir_all(&data)?;
            }
            ensure!(0 < images, "no backup met a deploy");
            Ok(())
        },
    );
}

/// Apps with images of their own come and go until `done`.
fn deploy_and_destroy(host: &Host, done: &AtomicBool) -> Result<()> {
    for round in 0.. {
        if done.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("app-{round}");
        let own = Entry::File(name.as_bytes().repeat(1 << 16), 0o644);
        let image = Image::shell("exec busybox httpd -f -p 0.0.0.0:8081 -h /")?.entry("own", &own);
        let image = image.write(&host.dir().join(format!("{name}-image")))?;
        private_app_of(host, &name, &image, SNIPPET)?;
        host.fly(&["apps", "destroy", &name, "--yes"])?.ok()?;
    }
    Ok(())
}

#[test]
fn a_backup_on_a_full_disk_leaves_nothing() {
    on_host(|host| {
        private_app(host, "web", SNIPPET)?;
        let small = host.dir().join("small");
        fs::create_dir(&small)?;
        for size in ["size=64k", "size=2m"] {
            host.run("mount", &["-t", "tmpfs", "-o", size, "perch-test", &text(&small)])?.ok()?;
            let file = text(&small.join("b"));
            let output = perch(host, &host.data_dir(), &["backup", &file])?;
            check_refused(&output, &["is full", "was not written"])?;
            let left = host.run("ls", &["-A", &text(&small)])?.ok()?;
            ensure!(left.is_empty(), "left behind: {left}");
            host.run("umount", &[&text(&small)])?.ok()?;
        }
        let inside = text(&host.data_dir().join("b"));
        let output = perch(host, &host.data_dir(), &["backup", &inside])?;
        check_refused(&output, &["inside the data directory"])
    });
}

#[test]
fn a_restore_on_a_disk_that_is_too_small_changes_nothing() {
    on_host(|host| {
        private_app(host, "web", SNIPPET)?;
        let file = backup(host, "b")?;
        let other = Host::bare(Network::Open)?;
        let data = other.data_dir();
        fs::create_dir(&data)?;
        other.run("mount", &["-t", "tmpfs", "-o", "size=1m", "perch-test", &text(&data)])?.ok()?;
        check_refused(&restore(&other, &file, &[])?, &["MB free", "nothing was restored"])?;
        let left = other.run("ls", &["-A", &text(&data)])?.ok()?;
        ensure!(left.trim() == "lock", "left behind: {left}");
        Ok(())
    });
}

#[test]
fn what_is_damaged_newer_or_no_backup_is_refused_and_the_data_stay() {
    on_host(|host| {
        let address = private_app(host, "web", SNIPPET)?;
        let file = backup(host, "b")?;
        perch(host, &host.data_dir(), &["down"])?.ok()?;
        let whole = fs::read(&file)?;
        let bad = host.dir().join("bad");
        let mut flipped = whole.clone();
        let middle = whole.len() / 2;
        flipped[middle] ^= 1;
        let newer = String::from_utf8_lossy(&whole[..1024]).replace("\"format\":1", "\"format\":7");
        let cases: [(&[u8], &str); 5] = [
            (&whole[..whole.len() / 3], "cut short"),
            (&flipped, "damaged"),
            (newer.as_bytes(), "newer release"),
            (b"", "no backup of perch"),
            (b"PK\x03\x04", "no backup of perch"),
        ];
        let before = names(&host.data_dir())?;
        for (bytes, words) in cases {
            fs::write(&bad, bytes)?;
            check_refused(&restore(host, &bad, &["--force"])?, &[words])?;
            ensure!(names(&host.data_dir())? == before, "{words}: changed");
            let elsewhere = host.dir().join("elsewhere");
            check_refused(&perch(host, &elsewhere, &["restore", &text(&bad)])?, &[words])?;
            ensure!(!elsewhere.exists(), "{words}: a directory was left");
        }
        host.start_server()?;
        check_answer(&host.get(&address, 80, "/")?, "Hello")
    });
}

#[test]
fn a_restore_in_place_waits_for_the_end_of_what_runs_and_keeps_the_former_data() {
    on_host(|host| {
        let address = private_app(host, "web", AWAKE)?;
        let file = backup(host, "b")?;
        private_app(host, "later", AWAKE)?;
        check_refused(&restore(host, &file, &["--force"])?, &["another server", "stop it first"])?;
        host.stop_server()?;
        check_refused(&restore(host, &file, &["--force"])?, &["perch down"])?;
        ensure!(!host.perch_processes("shim").is_empty(), "a Machine was ended");
        perch(host, &host.data_dir(), &["down"])?.ok()?;
        check_refused(&restore(host, &file, &[])?, &["has a server's data", "--force"])?;
        restore(host, &file, &["--force"])?.says(&["1 apps, 2 Machines", "before-restore-"])?;
        host.start_server()?;
        let apps = host.fly(&["apps", "list"])?.ok()?;
        ensure!(apps.contains("web") && !apps.contains("later"), "{apps}");
        host.wait_all("web", "started", SOON)?;
        check_answer(&host.get(&address, 80, "/")?, "Hello")?;
        let mut all = names(&host.data_dir())?;
        all.retain(|name| name.starts_with("before-restore-"));
        let kept = host.data_dir().join(all.first().context("nothing was kept")?);
        ensure!(kept.join("store.db").exists(), "the former store is gone");
        perch(host, &host.data_dir(), &["down", "--purge"])?.ok()?;
        ensure!(!host.data_dir().exists(), "left: {:?}", names(&host.data_dir())?);
        Ok(())
    });
}

#[test]
fn after_an_interrupted_restore_no_server_starts() {
    on_host(|host| {
        private_app(host, "web", SNIPPET)?;
        let file = backup(host, "b")?;
        perch(host, &host.data_dir(), &["down"])?.ok()?;
        fs::create_dir(host.data_dir().join("restore.swap"))?;
        let error = host.start_server().expect_err("it started").to_string();
        ensure!(error.contains("was interrupted"), "{error}");
        restore(host, &file, &["--force"])?.ok()?;
        host.start_server()?;
        check_answer(&host.get(&host.flycast("web")?, 80, "/")?, "Hello")
    });
}
