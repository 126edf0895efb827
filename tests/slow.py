"""What `make quick` leaves out: the starts of the names of tests, with the seconds that a processor spends on them.

The rest takes about 90 seconds of processor time, start included, so two cores need less than a minute. A new test
that takes longer than 3 seconds belongs in here; `pytest --durations=20` finds it.
"""

SLOW = {
    "tests/bad_input/test_bad_input.py::test_as_a_process": 35,  # the same lines are tested in process
    "tests/families/test_compare.py::test_every_family_is_measured_as_calc_metrics_does": 5,
    "tests/families/test_compare.py::test_train_py_is_called_and_stops_by_the_clock": 12,
    "tests/families/test_compare.py::test_two_processes_write_the_table_of_one": 15,
    "tests/benchmarks/test_counts.py": 5,
    "tests/benchmarks/test_gpu.py": 45,
    "tests/families/test_runs.py::": 25,
    "tests/faults/": 123,
    "tests/gaussian/test_backend_torch.py::test_every_single_derivative_is_that_of_finite_differences": 3,
    "tests/gaussian/test_exactness.py": 4,
    "tests/gaussian/test_native_build.py": 5,
    "tests/gaussian/test_robustness.py::test_extreme_splats_stay_finite": 3,
    "tests/metrics/test_ranks.py": 11,
    "tests/metrics/test_swd.py::test_reacts_to_blur_and_noise": 2,
    "tests/test_architecture.py::test_a_package_imports_without": 5,
    "tests/test_calc_metrics.py::test_two_processes": 9,
    "tests/test_calc_metrics.py::test_untrained_detector_marks_the_line": 8,
    "tests/test_convert_checkpoint.py": 4,
    "tests/test_packaging.py::test_wheel": 10,
    "tests/test_train.py::test_trains_without_native_code": 5,
    "tests/test_train.py::test_two_ranks_train_like_one_process": 15,
    "tests/test_train_options.py": 11,
    "tests/torch_utils/test_distributed.py::test_a_lost_rank_ends_the_other_and_no_checkpoint_follows": 9,
    "tests/torch_utils/test_distributed.py::test_a_rank_that_does_not_answer_is_named": 8,
    "tests/torch_utils/test_launcher.py": 9,
    "tests/torch_utils/test_triton_ops.py": 12,
    "tests/training/data/test_data_fuzz.py": 4,
    "tests/training/families/cgs/test_color.py::test_dead_splats_come_back": 3,
    "tests/training/families/cgs/test_golden.py::test_discriminator": 10,
    "tests/training/families/test_compile.py": 25,
    "tests/training/families/test_relativistic.py::": 7,
    "tests/training/published/test_hostile_files.py": 28,
    "tests/training/runs/test_resume.py": 31,
    "tests/training/test_measure.py": 36,
    "tests/training/test_rank_equality.py": 34,
    "tests/training/test_step.py::test_gradients_do_not_depend_on_the_micro_batches": 8,
    "tests/training/test_waits.py::test_a_step_copies_once_for_each_type_and_never_waits": 9,
}
