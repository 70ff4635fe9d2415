"""Distil the bundled teacher into a student of a fifth of its size, on one task."""

import tdmpc_opt

if __name__ == "__main__":  # it starts worker processes
    student = tdmpc_opt.distill(
        "demo-teacher",
        tasks="cartpole-balance",
        size="0.3",
        updates=50,  # enough to test the code; a student takes thousands
        output="example-output/student",
    )
    print(f"teacher {student.teacher}, student {student.policy}, int8 {student.int8}")
    print(f"{student.folder}: {student.lost.difference} points")
