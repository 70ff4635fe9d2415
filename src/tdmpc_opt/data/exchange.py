"""Datasets of other programs in and out; the content of a source decides what reads it."""

from tdmpc_opt.configs import DataExportConfig, DataImportConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.official import export_official, import_official
from tdmpc_opt.data.reports import ImportReport
from tdmpc_opt.errors import DataError
from tdmpc_opt.files import alone, refuse_overwrite
from tdmpc_opt.progress import Progress, Silent


def import_data(config: DataImportConfig, progress: Progress | None = None) -> ImportReport:
    """Add official shard files and Minari datasets to a dataset on disk.

    Args:
        config: Sources, tasks and output.
        progress: Receives megabytes of shard files, episodes of Minari datasets.

    Returns:
        The content of each source, and what was left out.

    Raises:
        DataError: An invalid source or episode, unless those are to be skipped; only invalid
            ones; or a full disk.
        UnknownTaskError: A task to import that is not in the files' table.
        InputError: A task for a Minari dataset that does not fit it, or several.
        MissingDependencyError: A Minari dataset, but no Minari.
        RunError: Another process imports into the same folder.
    """
    refuse_overwrite(config)
    progress, report = progress or Silent(), ImportReport()
    skip_bad = config.on_bad == "skip"
    folders = [path for path in config.sources if path.is_dir()]
    files = [path for path in config.sources if not path.is_dir()]
    with alone(config.output / "import"):
        if files:
            import_official(
                files, config.output, config.tasks, report, progress, skip_bad=skip_bad
            )
        for folder in folders:
            from tdmpc_opt.data.minari import import_minari, is_minari

            if is_minari(folder):
                import_minari(
                    folder, config.output, config.tasks, report, progress, skip_bad=skip_bad
                )
                continue
            foreign = DataError(f"{folder} is no Minari dataset; name shard files one by one")
            report.leave_out(foreign, skip_bad=skip_bad)
    if not report.lines:
        raise DataError(f"nothing to import: {'; '.join(report.left_out)}")
    return report


def export_data(config: DataExportConfig, progress: Progress | None = None) -> list[str]:
    """Write a dataset in another program's layout.

    Args:
        config: Dataset, format and output.
        progress: Receives megabytes of shard files, tasks of Minari datasets.

    Returns:
        The files or folders of the export.

    Raises:
        DataError: A dataset that is missing or damaged, a full disk, or a folder that cannot be
            written.
        MissingDependencyError: The format is Minari's, which is not installed.
    """
    refuse_overwrite(config)
    progress, dataset = progress or Silent(), EpisodeDataset.open(config.data)
    if not len(dataset):
        raise DataError(f"{config.data} holds no episodes to export")
    with alone(config.output / "export"):
        if config.format == "official":
            paths = export_official(dataset, config.output, progress)
        else:
            from tdmpc_opt.data.minari import export_minari

            paths = export_minari(dataset, config.output, progress)
    return [str(path) for path in paths]
