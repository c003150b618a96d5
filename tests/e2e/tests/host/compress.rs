//! `http_options.compress`, by a client that people have.

use anyhow::ensure;

use crate::stage::{AWAKE, hello_image, on_host, one_machine_of};

#[test]
fn curl_gets_a_long_answer_in_few_bytes_and_reads_all_of_it() {
    on_host(|host| {
        let sections = format!("{AWAKE}  [http_service.http_options]\n    compress = true\n");
        let address = one_machine_of(host, "web", &hello_image(host)?, &sections)?;
        // The program tells the path that it was asked for.
        let path = format!("/headers?{}", "long-".repeat(1000));
        let url = format!("http://[{address}]{path}");
        let line = "\n%header{content-encoding} %header{vary} %{size_download}";
        for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
            let called = [version, "--compressed", "-gsS", "-m", "20", "-w", line, &url];
            let said = host.run("curl", &called)?.ok()?;
            let (text, told) = said.trim_end().rsplit_once('\n').unwrap_or_default();
            ensure!(text.contains(&path), "{version}: {said}");
            let bytes = told.strip_prefix("gzip Accept-Encoding ").and_then(|it| it.parse().ok());
            ensure!(bytes.is_some_and(|bytes: usize| bytes * 4 < path.len()), "{version}: {told}");
        }
        let plain = host.get(&address, 80, &path)?;
        ensure!(plain.body.contains(&path), "who does not ask for it: {}", plain.body);
        Ok(())
    });
}
