//! Images that nothing refers to go, and what is in use stays.

use std::fs;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entry, Host, Image, Network, wait_until};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, SOON, check_answer, machine_processes, on, private_app_of,
    wait_asleep,
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
    Ok(names(host, dir)?.len())
}

fn names(host: &Host, dir: &str) -> Result<Vec<String>> {
    let path = host.data_dir().join("images").join(dir).to_string_lossy().into_owned();
    Ok(host.run("ls", &[&path])?.ok()?.lines().map(str::to_owned).collect())
}

/// The one layer that came since there were these.
fn new_layer(host: &Host, known: &[String]) -> Result<String> {
    let mut all = names(host, "layers")?;
    all.retain(|name| !known.contains(name));
    ensure!(all.len() == 1, "not one new layer: {all:?}");
    all.pop().context("a layer")
}

fn has_layer(host: &Host, layer: &String) -> Result<bool> {
    Ok(names(host, "layers")?.contains(layer))
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

/// Asks the API. Its socket lies in a file system that only the host sees.
fn ask(host: &Host, path: &str, body: &[&str]) -> Result<serde_json::Value> {
    let socket = host.socket().to_string_lossy().into_owned();
    let url = format!("http://perch{path}");
    let args = ["-sS", "--fail-with-body", "--unix-socket", &socket, &url];
    host.run("curl", &[&args, body].concat())?.json()
}

fn post(host: &Host, path: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
    ask(host, path, &["-H", "Content-Type: application/json", "-d", &body.to_string()])
}

/// The config of an app's Machine.
fn config_of(host: &Host, app: &str) -> Result<serde_json::Value> {
    Ok(ask(host, &format!("/v1/apps/{app}/machines"), &[])?[0]["config"].clone())
}

#[test]
fn a_run_keeps_its_image_while_its_machine_already_has_another() {
    on(host, |host| {
        host.configure(IMPATIENT);
        host.stop_server()?;
        host.start_server()?;
        // It does not end when it is asked to, and goes on reading its own files.
        let stubborn = "trap '' INT; busybox httpd -p 0.0.0.0:8081 -h /tmp; \
                        while :; do busybox wc -c /own; busybox sleep 1; done";
        private_app_of(host, "old", &image(host, "old", stubborn)?, AWAKE)?;
        let own = new_layer(host, &[])?;
        app(host, "new", AWAKE)?;
        let mut old = config_of(host, "old")?;
        old["stop_config"] = serde_json::json!({"timeout": "300s", "signal": "SIGINT"});
        old["services"] = serde_json::json!([]);
        host.fly(&["apps", "create", "web"])?.ok()?;
        let machine = post(host, "/v1/apps/web/machines", &serde_json::json!({"config": old}))?;
        let id = machine["id"].as_str().context("no id")?.to_owned();
        host.wait_all("web", "started", SOON)?;
        // From here on only the Machine names its image, and then nobody.
        host.fly(&["apps", "destroy", "old", "-y"])?.ok()?;
        old["image"] = config_of(host, "new")?["image"].clone();
        let path = format!("/v1/apps/web/machines/{id}");
        post(host, &path, &serde_json::json!({"config": old}))?;
        ensure!(!machine_processes(host, &id).is_empty(), "the old run has ended already");
        let bystander = image(host, "bystander", "exec busybox httpd -f -p 0.0.0.0:8081 -h /")?;
        let known = names(host, "layers")?;
        private_app_of(host, "bystander", &bystander, AWAKE)?;
        let unused = new_layer(host, &known)?;
        host.fly(&["apps", "destroy", "bystander", "-y"])?.ok()?;
        wait_until("what nothing uses to go", SOON, || {
            Ok((!has_layer(host, &unused)?).then_some(()))
        })?;
        ensure!(has_layer(host, &own)?, "the layer of the old run is gone");
        let reads = host.fly(&["logs", "-a", "web", "--no-tail"])?.ok()?;
        ensure!(!machine_processes(host, &id).is_empty(), "the old run ended before it mattered");
        ensure!(reads.contains("3145728 /own"), "it cannot read its file: {reads}");
        let init = machine_processes(host, &id).into_iter().min_by_key(|process| process.pid);
        init.context("nothing of it runs")?.kill()?;
        wait_until("the image of the old run to go", SOON, || {
            Ok((!has_layer(host, &own)?).then_some(()))
        })?;
        host.wait_all("web", "started", SOON)
    });
}
