//! `ctl get carve`: one carve, or the archive that the host has uploaded.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;

use super::client::Client;
use super::table::bytes;
use super::{API, Failure, Output};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Carve {
    /// Its number.
    pub(super) id: u64,
    /// Write the archive to this file.
    #[arg(long, short = 'o', value_name = "FILE", conflicts_with = "stdout")]
    outfile: Option<PathBuf>,
    /// Write the archive to standard output.
    #[arg(long)]
    stdout: bool,
}

impl Carve {
    /// Whether the archive is wanted, not what is known of it.
    pub(super) fn is_download(&self) -> bool {
        self.stdout || self.outfile.is_some()
    }

    /// What is known of it.
    pub(super) async fn show(&self, client: &Client) -> Result<Value, Failure> {
        let mut body = client.get(&format!("{API}/carves/{}", self.id)).await?;
        Ok(body.get_mut("carve").map(Value::take).unwrap_or_default())
    }

    /// Block after block, never all of it in memory.
    pub(super) async fn download(&self, client: &Client) -> Result<Output, Failure> {
        let carve = self.show(client).await?;
        let number = |name: &str| carve.get(name).and_then(Value::as_u64);
        if carve
            .get("error")
            .and_then(Value::as_str)
            .is_some_and(|error| !error.is_empty())
        {
            return Err(Failure::Refused(format!(
                "carve {} has failed; there is no archive",
                self.id
            )));
        }
        let blocks = number("block_count").unwrap_or_default();
        let Some(path) = &self.outfile else {
            blocks_into(client, self.id, blocks, &mut std::io::stdout().lock()).await?;
            return Ok(Output::default());
        };
        let shown = path.display();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let mut file =
            file.map_err(|error| Failure::Usage(format!("cannot write {shown}: {error}")))?;
        match blocks_into(client, self.id, blocks, &mut file).await {
            Ok(count) => Ok(Output::of(format!("[+] {} in {shown}\n", bytes(count)))),
            Err(failure) => {
                let _ = std::fs::remove_file(path);
                Err(failure)
            }
        }
    }
}

async fn blocks_into(
    client: &Client,
    id: u64,
    blocks: u64,
    out: &mut impl Write,
) -> Result<u64, Failure> {
    let mut count = 0;
    for block in 0..blocks {
        let body = client
            .get(&format!("{API}/carves/{id}/block/{block}"))
            .await?;
        let data = body.get("data").and_then(Value::as_str).unwrap_or_default();
        let data = BASE64_STANDARD.decode(data);
        let data = data.map_err(|error| {
            Failure::Unavailable(format!("block {block} is no base64: {error}"))
        })?;
        out.write_all(&data)
            .map_err(|error| Failure::Usage(format!("cannot write: {error}")))?;
        count += u64::try_from(data.len()).unwrap_or_default();
    }
    Ok(count)
}
