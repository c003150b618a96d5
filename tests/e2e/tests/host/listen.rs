//! Apps that do not listen where the proxy looks for them.

use anyhow::{Result, ensure};
use perch_testkit::{Host, Output};

use crate::stage::{SNIPPET, fly_toml, on_host, shell_image};

#[test]
fn an_app_on_loopback_gets_the_listen_warning() {
    on_host(|host| {
        let script = "exec busybox httpd -f -p 127.0.0.1:8081 -h /tmp";
        check_warning(host, script, &["- 0.0.0.0:8081", "127.0.0.1:8081"])
    });
}

#[test]
fn an_app_on_another_port_gets_the_listen_warning() {
    on_host(|host| {
        let script = "exec busybox httpd -f -p 0.0.0.0:9999 -h /tmp";
        check_warning(host, script, &["- 0.0.0.0:8081", "0.0.0.0:9999"])
    });
}

#[test]
fn an_app_that_does_not_listen_gets_the_listen_warning() {
    on_host(|host| {
        let script = "while :; do busybox sleep 1; done";
        check_warning(host, script, &["- 0.0.0.0:8081"])
    });
}

#[test]
fn a_request_to_an_app_that_does_not_listen_says_so() {
    on_host(|host| {
        let sections =
            SNIPPET.replace("[http_service]", "[http_service]\n  start_timeout = \"2s\"");
        // Nobody waits for it to listen: it will not.
        launch(host, "while :; do busybox sleep 1; done", &sections, &["--detach"])?;
        let answer = host.get(&host.flycast("deaf")?, 80, "/")?;
        ensure!(answer.status == 503 && answer.body.contains("PR03"), "AS-69: {answer:?}");
        ensure!(answer.header("retry-after").is_some(), "no Retry-After: {answer:?}");
        Ok(())
    });
}

fn launch(host: &Host, script: &str, sections: &str, more: &[&str]) -> Result<Output> {
    let image = shell_image(host, "deaf", script)?;
    let dir = host.app_dir("deaf", &fly_toml("deaf", &image, sections))?;
    // One Machine: each that does not listen is watched for its whole time.
    let args = ["launch", "--flycast", "--copy-config", "--name", "deaf", "--ha=false", "-y"];
    host.fly_in(&dir, &[&args, more].concat())
}

fn check_warning(host: &Host, script: &str, parts: &[&str]) -> Result<()> {
    let output = launch(host, script, SNIPPET, &[])?;
    output.says(&["The app is not listening on the expected address"])?;
    output.says(parts)?;
    output.ok().map(drop)
}
