/* A client and a worker on libgearman, as programs made for gearmand have them.
 *
 *   peer worker HOST PORT     reverses; fails on "fail"; sends an exception on "except"; sends data and status on "parts"
 *   peer client HOST PORT     uses all of that, and says what it has seen
 */
#include <libgearman/gearman.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

/* ---- the worker ---- */

static gearman_return_t reverse(gearman_job_st *job, void *context) {
  (void)context;
  const char *workload = gearman_job_workload(job);
  size_t size = gearman_job_workload_size(job);
  if (size == 4 && memcmp(workload, "fail", 4) == 0) {
    /* GEARMAN_ERROR would close the connection, so that the job is tried again. */
    return GEARMAN_FATAL;
  }
  if (size == 6 && memcmp(workload, "except", 6) == 0) {
    gearman_job_send_exception(job, "a reason", 8);
    return GEARMAN_FATAL;
  }
  if (size == 5 && memcmp(workload, "parts", 5) == 0) {
    gearman_job_send_data(job, "first ", 6);
    gearman_job_send_status(job, 1, 2);
    gearman_job_send_warning(job, "careful", 7);
    gearman_job_send_data(job, "second ", 7);
  }
  if (size == 6 && memcmp(workload, "unique", 6) == 0) {
    const char *unique = gearman_job_unique(job);
    gearman_job_send_data(job, unique, strlen(unique));
  }
  char *result = malloc(size + 1);
  for (size_t at = 0; at < size; at++) {
    result[at] = workload[size - 1 - at];
  }
  gearman_return_t sent = gearman_job_send_complete(job, result, size);
  free(result);
  return gearman_failed(sent) ? GEARMAN_ERROR : GEARMAN_SUCCESS;
}

static int work(const char *host, in_port_t port) {
  gearman_worker_st *worker = gearman_worker_create(NULL);
  gearman_function_t function = gearman_function_create(reverse);
  if (gearman_failed(gearman_worker_add_server(worker, host, port)) ||
      gearman_failed(gearman_worker_define_function(worker, "reverse", 7, function, 0, NULL))) {
    die("worker", gearman_worker_error(worker));
  }
  gearman_worker_set_identifier(worker, "in-c", 4);
  puts("ready");
  fflush(stdout);
  for (;;) {
    gearman_return_t worked = gearman_worker_work(worker);
    /* A job that failed is no failure of its worker. */
    if (gearman_failed(worked) && worked != GEARMAN_WORK_FAIL && worked != GEARMAN_ERROR &&
        worked != GEARMAN_WORK_EXCEPTION) {
      die("work", gearman_worker_error(worker));
    }
  }
}

/* ---- the client ---- */

static gearman_return_t on_data(gearman_task_st *task) {
  printf("data %.*s\n", (int)gearman_task_data_size(task), (const char *)gearman_task_data(task));
  return GEARMAN_SUCCESS;
}

static gearman_return_t on_warning(gearman_task_st *task) {
  printf("warning %.*s\n", (int)gearman_task_data_size(task), (const char *)gearman_task_data(task));
  return GEARMAN_SUCCESS;
}

static gearman_return_t on_status(gearman_task_st *task) {
  printf("status %u/%u\n", gearman_task_numerator(task), gearman_task_denominator(task));
  return GEARMAN_SUCCESS;
}

static gearman_return_t on_complete(gearman_task_st *task) {
  printf("complete %.*s\n", (int)gearman_task_data_size(task), (const char *)gearman_task_data(task));
  return GEARMAN_SUCCESS;
}

static gearman_return_t on_fail(gearman_task_st *task) {
  (void)task;
  puts("failed");
  return GEARMAN_SUCCESS;
}

static gearman_return_t on_exception(gearman_task_st *task) {
  printf("exception %.*s\n", (int)gearman_task_data_size(task), (const char *)gearman_task_data(task));
  return GEARMAN_SUCCESS;
}

static void run_one(gearman_client_st *client, const char *unique, const char *workload) {
  gearman_return_t added;
  gearman_client_add_task(client, NULL, NULL, "reverse", unique, workload, strlen(workload), &added);
  if (gearman_failed(added)) {
    die("add_task", gearman_client_error(client));
  }
  gearman_client_run_tasks(client);
  gearman_client_task_free_all(client);
}

static size_t completed;
static gearman_return_t count(gearman_task_st *task) {
  (void)task;
  completed++;
  return GEARMAN_SUCCESS;
}

static int ask(const char *host, in_port_t port) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  gearman_client_st *client = gearman_client_create(NULL);
  gearman_client_add_server(client, host, port);
  gearman_return_t ret;
  size_t size;

  char *(*const dos[])(gearman_client_st *, const char *, const char *, const void *, size_t, size_t *,
                       gearman_return_t *) = {
      (void *)gearman_client_do, (void *)gearman_client_do_high, (void *)gearman_client_do_low};
  for (size_t at = 0; at < 3; at++) {
    char *result = dos[at](client, "reverse", NULL, "hola", 4, &size, &ret);
    if (gearman_failed(ret)) {
      die("do", gearman_client_error(client));
    }
    printf("do %.*s\n", (int)size, result);
    free(result);
  }

  gearman_client_set_data_fn(client, on_data);
  gearman_client_set_warning_fn(client, on_warning);
  gearman_client_set_status_fn(client, on_status);
  gearman_client_set_complete_fn(client, on_complete);
  gearman_client_set_fail_fn(client, on_fail);
  gearman_client_set_exception_fn(client, on_exception);
  run_one(client, NULL, "parts");
  run_one(client, "u-17", "unique");
  run_one(client, NULL, "fail");
  gearman_client_add_options(client, GEARMAN_CLIENT_EXCEPTION);
  run_one(client, NULL, "except");

  /* Many at once on one connection, some of them alike. */
  gearman_client_set_complete_fn(client, count);
  char workloads[200][16];
  for (size_t at = 0; at < 200; at++) {
    snprintf(workloads[at], sizeof workloads[at], "%zu", at);
    gearman_client_add_task(client, NULL, NULL, "reverse", at < 10 ? "same" : NULL, workloads[at],
                            strlen(workloads[at]), &ret);
  }
  gearman_client_run_tasks(client);
  gearman_client_task_free_all(client);
  printf("many %zu\n", completed);

  gearman_job_handle_t handle;
  ret = gearman_client_do_background(client, "reverse", NULL, "background", 10, handle);
  if (gearman_failed(ret)) {
    die("do_background", gearman_client_error(client));
  }
  bool known = true, running;
  for (int tries = 0; known && tries < 6000; tries++) {
    ret = gearman_client_job_status(client, handle, &known, &running, NULL, NULL);
    if (gearman_failed(ret)) {
      die("job_status", gearman_client_error(client));
    }
    usleep(10000);
  }
  printf("background %s\n", known ? "hangs" : "done");

  ret = gearman_client_echo(client, "echo", 4);
  printf("echo %s\n", gearman_success(ret) ? "ok" : gearman_client_error(client));
  gearman_client_free(client);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 4) {
    die(argv[0], "worker|client HOST PORT");
  }
  in_port_t port = (in_port_t)atoi(argv[3]);
  return strcmp(argv[1], "worker") == 0 ? work(argv[2], port) : ask(argv[2], port);
}
