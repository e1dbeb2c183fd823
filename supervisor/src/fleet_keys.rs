//! Options that Fleet's server has and this one does not. A file, variable or flag that sets one of them is no
//! mistake, so it is named in a warning and ignored; anything else that is unknown is an error.

/// Sections of which nothing is used here.
const SECTIONS: &[&str] = &[
    "activity",
    "android",
    "app",
    "auth",
    "calendar",
    "conditional_access",
    "email",
    "failing_policies",
    "firehose",
    "geoip",
    "gitops",
    "kafkarest",
    "kinesis",
    "lambda",
    "license",
    "mdm",
    "microsoft_compliance_partner",
    "nats",
    "packaging",
    "partnerships",
    "pubsub",
    "s3",
    "sentry",
    "ses",
    "splunk",
    "upgrades",
    "vulnerabilities",
    "webhook",
];

/// Options of the sections that both have.
pub(crate) const KEYS: &[(&str, &[&str])] = &[
    ("filesystem", &["audit_log_file"]),
    (
        "logging",
        &[
            "error_retention_period",
            "otel_logs_enabled",
            "topics",
            "tracing_enabled",
            "tracing_type",
        ],
    ),
    (
        "mysql",
        &[
            "max_idle_conns",
            "protocol",
            "region",
            "sql_mode",
            "sts_assume_role_arn",
            "sts_external_id",
            "tls_config",
            "tls_server_name",
        ],
    ),
    (
        "osquery",
        &[
            "allow_body_auth_fallback",
            "async_host_collect_interval",
            "async_host_collect_lock_timeout",
            "async_host_collect_log_stats_interval",
            "async_host_collect_max_jitter_percent",
            "async_host_delete_batch",
            "async_host_insert_batch",
            "async_host_redis_pop_count",
            "async_host_redis_scan_keys_count",
            "async_host_update_batch",
            "enable_async_host_processing",
            "enable_log_rotation",
            "enroll_cooldown",
            "min_software_last_opened_at_diff",
            "policy_update_interval",
            "result_log_file",
            "status_log_file",
        ],
    ),
    (
        "redis",
        &[
            "cache_name",
            "cluster_follow_redirections",
            "cluster_read_from_replica",
            "conn_max_lifetime",
            "conn_wait_timeout",
            "connect_retry_attempts",
            "duplicate_results",
            "host_cache_enabled",
            "host_cache_ttl",
            "idle_timeout",
            "keep_alive",
            "live_query_small_target_threshold",
            "max_idle_conns",
            "max_open_conns",
            "region",
            "sts_assume_role_arn",
            "sts_external_id",
            "tls_cert",
            "tls_handshake_timeout",
            "tls_key",
            "tls_server_name",
            "write_timeout",
        ],
    ),
    (
        "server",
        &[
            "cleanup_dist_targets_age",
            "default_max_request_body_size",
            "force_h2c",
            "frequent_cleanups_enabled",
            "gzip_responses",
            "max_installer_size",
            "private_key",
            "private_key_arn",
            "private_key_region",
            "private_key_sts_assume_role_arn",
            "private_key_sts_external_id",
            "sandbox_enabled",
            "vpp_verify_timeout",
        ],
    ),
];

/// Variables of Fleet's that stand outside its sections, with our options for them.
pub(crate) const VARIABLES: &[(&str, &str)] = &[(
    "FLEET_LIVE_QUERY_REST_PERIOD",
    "osquery.live_query_rest_period",
)];

/// Whether `path` (`["mysql", "protocol"]`) is an option or a section of Fleet's that is not used here.
pub(crate) fn is_fleets(path: &[String]) -> bool {
    match path {
        [section, ..] if SECTIONS.contains(&section.as_str()) => true,
        [section, name, ..] => KEYS
            .iter()
            .any(|(known, names)| known == section && names.contains(&name.as_str())),
        _ => false,
    }
}

/// The candidate that `word` was probably meant to be.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let (distance, best) = candidates
        .into_iter()
        .map(|candidate| (edits(word, candidate), candidate))
        .min()?;
    (distance <= 1 + word.chars().count() / 4).then_some(best)
}

/// Insertions, deletions and replacements between two words.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, left) in a.chars().enumerate() {
        let mut diagonal = index;
        let mut previous = index + 1;
        let mut next = vec![previous];
        for (right, above) in b.iter().zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(left != *right);
            previous = replaced.min(above + 1).min(previous + 1);
            next.push(previous);
            diagonal = *above;
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use fleet_protocol::config::Config;

    use super::*;

    #[test]
    fn no_option_of_ours_is_called_ignored() {
        for key in Config::keys() {
            let path: Vec<String> = key.path.iter().map(|part| (*part).to_owned()).collect();
            assert!(!is_fleets(&path), "{}", key.dotted());
        }
    }

    #[test]
    fn edits_are_counted() {
        for (a, b, distance) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("adress", "address", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn typing_mistakes_find_their_option() {
        assert_eq!(nearest("adress", ["cert", "address"]), Some("address"));
        assert_eq!(nearest("zzzzzz", ["cert", "address"]), None);
    }
}
