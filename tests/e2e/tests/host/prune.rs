//! Images that nothing refers to go, and what is in use stays.

use std::fs;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entry, Host, Image, Network, wait_until};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, SOON, check_answer, on, private_app_of, wait_asleep,
};

const IMPATIENT: &str = "auto_stop_after = \"1s\"\nimage_grace = \"1s\"\n";

/// An app that says who it is, with an image that no other app has.
fn app(host: &Host, name: &str, sections: &str) -> Result<String> {
    let script = format!(
        "mkdir -p /www; echo {name} > /www/index.html; exec busybox httpd -f -p 0.0.0.0:8081 -h /www"
    );
    private_app_of(host, name, &image(host, name, &script)?, sections)
}

/// An image that shares no layer with another one, and weighs something.
fn image(host: &Host, name: &str, script: &str) -> Result<String> {
    let own = Entry::File(name.as_bytes().repeat(1 << 20), 0o644);
    let image = Image::shell(script)?.entry("own", &own);
    image.write(&host.dir().join(format!("{name}-image")))
}

/// A host whose data directory is a file system of its own, so that its `df` is nobody else's.
fn host() -> Result<Host> {
    let mut host = Host::bare(Network::Open)?;
    fs::create_dir(host.data_dir())?;
    let data = host.data_dir().to_string_lossy().into_owned();
    host.run("mount", &["-t", "tmpfs", "-o", "size=200m", "tmpfs", &data])?.ok()?;
    host.configure(QUICK_SLEEP);
    host.start_server()?;
    Ok(host)
}

/// Kilobytes that `df` shows as used.
fn used(host: &Host) -> Result<u64> {
    let data = host.data_dir().to_string_lossy().into_owned();
    let text = host.run("df", &["--output=used", &data])?.ok()?;
    text.lines().last().and_then(|line| line.trim().parse().ok()).context("no number")
}

fn files(host: &Host, dir: &str) -> Result<usize> {
    let path = host.data_dir().join("images").join(dir).to_string_lossy().into_owned();
    Ok(host.run("ls", &[&path])?.ok()?.lines().count())
}

fn restart_impatient(host: &mut Host) -> Result<()> {
    host.stop_server()?;
    host.configure(IMPATIENT);
    host.start_server()
}

#[test]
fn the_images_of_an_app_that_is_gone_go_and_df_falls() {
    on(host, |host| {
        let awake = app(host, "awake", AWAKE)?;
        let asleep = app(host, "asleep", SNIPPET)?;
        let kept = (files(host, "layers")?, files(host, "manifests")?);
        app(host, "old", AWAKE)?;
        host.fly(&["apps", "destroy", "old", "-y"])?.ok()?;
        wait_asleep(host, "asleep")?;
        let before = used(host)?;
        restart_impatient(host)?;
        wait_until("the old image to go", SOON, || {
            Ok(((files(host, "layers")?, files(host, "manifests")?) == kept).then_some(()))
        })?;
        wait_until("df to fall", SOON, || Ok((used(host)? + 1_000 < before).then_some(())))?;
        check_answer(&host.get(&awake, 80, "/")?, "awake")?;
        check_answer(&host.get(&asleep, 80, "/")?, "asleep")?;
        // The same image again: nothing is left that would pass for it.
        host.configure(QUICK_SLEEP);
        host.stop_server()?;
        host.start_server()?;
        let again = app(host, "old", AWAKE)?;
        check_answer(&host.get(&again, 80, "/")?, "old")
    });
}

#[test]
fn an_earlier_release_keeps_its_image_and_a_crash_while_pruning_harms_nothing() {
    on(host, |host| {
        app(host, "web", SNIPPET)?;
        let image = image(host, "new", "exec busybox httpd -f -p 0.0.0.0:8081 -h /etc")?;
        let toml = crate::stage::fly_toml("web", &image, SNIPPET);
        let dir = host.app_dir("web", &toml)?;
        host.fly_in(&dir, &["deploy"])?.ok()?;
        let kept = (files(host, "layers")?, files(host, "manifests")?);
        app(host, "old", AWAKE)?;
        host.fly(&["apps", "destroy", "old", "-y"])?.ok()?;
        ensure!(kept.1 < files(host, "manifests")?, "the third image is not there");
        restart_impatient(host)?;
        for _ in 0..3 {
            host.kill_server()?;
            host.start_server()?;
        }
        wait_until("one image to go", SOON, || {
            Ok(((files(host, "layers")?, files(host, "manifests")?) == kept).then_some(()))
        })?;
        let address = host.flycast("web")?;
        check_answer(&host.get(&address, 80, "/hostname")?, "")
    });
}
