/* MPI's constants are macros and its handles differ between libraries, so the few calls that are needed are made here,
 * compiled by that library's own compiler wrapper. Errors are fatal by MPI's default, for all processes of the world. */
#include <mpi.h>

/* 0: entered; 1: MPI was entered before. `threads` becomes 1 when any thread may abort. */
int tec_mpi_enter(int *rank, int *size, int *threads) {
  int entered = 0, provided = 0;
  MPI_Initialized(&entered);
  if (entered) return 1;
  MPI_Init_thread(0, 0, MPI_THREAD_MULTIPLE, &provided);
  *threads = provided == MPI_THREAD_MULTIPLE;
  MPI_Comm_rank(MPI_COMM_WORLD, rank);
  MPI_Comm_size(MPI_COMM_WORLD, size);
  return 0;
}

void tec_mpi_sum_floats(float *values, int count) {
  MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

void tec_mpi_sum_doubles(double *values, int count) {
  MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

void tec_mpi_broadcast(unsigned char *bytes, int count) { MPI_Bcast(bytes, count, MPI_BYTE, 0, MPI_COMM_WORLD); }

void tec_mpi_barrier(void) { MPI_Barrier(MPI_COMM_WORLD); }

void tec_mpi_leave(void) { MPI_Finalize(); }

void tec_mpi_abort(int code) { MPI_Abort(MPI_COMM_WORLD, code); }
