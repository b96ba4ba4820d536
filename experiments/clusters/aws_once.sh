#!/usr/bin/env bash
# What cluster.yaml needs at AWS beside machines: a security group and a file system for runs.
#
#   bash experiments/clusters/aws_once.sh create   makes them, or finds them; prints the lines to fill in
#   bash experiments/clusters/aws_once.sh delete   removes them, and all runs with them
#
# The file system (EFS) costs by the month for what lies in it, also when no machine runs. Needs the AWS
# command line, logged in; REGION and NAME can be set, and SSH_FROM, the addresses that may log in (by default
# that of this machine). From elsewhere later, `create` again lets that address in as well.
set -euo pipefail
: "${REGION:=us-east-1}" "${NAME:=apgd}"
export AWS_DEFAULT_REGION="$REGION" AWS_PAGER=""

vpc="$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)"
if [ "$vpc" = None ]; then
  echo "REGION must have a default VPC, but $REGION has none: aws ec2 create-default-vpc" >&2
  exit 1
fi
find_group() {
  aws ec2 describe-security-groups --filters "Name=vpc-id,Values=$vpc" "Name=group-name,Values=$NAME" \
    --query 'SecurityGroups[0].GroupId' --output text
}
find_files() {
  aws efs describe-file-systems --creation-token "$NAME" --query 'FileSystems[0].FileSystemId' --output text
}
find_who_may_log_in() {
  if [ -z "${SSH_FROM:-}" ]; then
    SSH_FROM="$(curl -fsS https://checkip.amazonaws.com)/32" || {
      echo "the address of this machine could not be found; say with SSH_FROM=192.0.2.7/32 who may log in" >&2
      exit 1
    }
  fi
  local byte='(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])'
  if ! [[ "$SSH_FROM" =~ ^($byte\.){3}$byte/(3[0-2]|[12]?[0-9])$ ]]; then
    echo "SSH_FROM must be IPv4 addresses like 192.0.2.7/32, but is '$SSH_FROM'" >&2
    exit 1
  fi
}
allow() {
  local said
  said="$(aws ec2 authorize-security-group-ingress --group-id "$group" "$@" 2>&1 > /dev/null)" && return
  case "$said" in
  *InvalidPermission.Duplicate*) ;; # it is allowed already
  *) echo "$said" >&2 && exit 1 ;;
  esac
}
group="$(find_group)"
files="$(find_files)"

case "${1:-}" in
create)
  find_who_may_log_in
  if [ "$group" = None ]; then
    group="$(aws ec2 create-security-group --vpc-id "$vpc" --group-name "$NAME" \
      --description "ssh from outside, everything within" --query GroupId --output text)"
  fi
  allow --protocol -1 --source-group "$group"
  allow --protocol tcp --port 22 --cidr "$SSH_FROM"
  if [ "$files" = None ]; then
    files="$(aws efs create-file-system --creation-token "$NAME" --encrypted \
      --tags "Key=Name,Value=$NAME" --query FileSystemId --output text)"
  fi
  until [ "$(aws efs describe-file-systems --file-system-id "$files" \
    --query 'FileSystems[0].LifeCycleState' --output text)" = available ]; do sleep 2; done
  mounted="$(aws efs describe-mount-targets --file-system-id "$files" --query 'MountTargets[].SubnetId' --output text)"
  for subnet in $(aws ec2 describe-subnets --filters "Name=vpc-id,Values=$vpc" Name=default-for-az,Values=true \
    --query 'Subnets[].SubnetId' --output text); do
    case "$mounted" in *"$subnet"*) ;; *)
      aws efs create-mount-target --file-system-id "$files" --subnet-id "$subnet" --security-groups "$group" > /dev/null ;;
    esac
  done
  image="$(aws ssm get-parameter --query Parameter.Value --output text \
    --name /aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id)"
  echo "  region: $REGION"
  echo "      ImageId: $image"
  echo "      SecurityGroupIds: [$group]"
  echo "    export EFS=$files.efs.$REGION.amazonaws.com"
  ;;
delete)
  if [ "$files" != None ]; then
    for target in $(aws efs describe-mount-targets --file-system-id "$files" \
      --query 'MountTargets[].MountTargetId' --output text); do
      aws efs delete-mount-target --mount-target-id "$target"
    done
    until [ -z "$(aws efs describe-mount-targets --file-system-id "$files" \
      --query 'MountTargets[].MountTargetId' --output text)" ]; do sleep 5; done
    aws efs delete-file-system --file-system-id "$files"
  fi
  if [ "$group" != None ]; then aws ec2 delete-security-group --group-id "$group" > /dev/null; fi
  echo "removed the security group and the file system $NAME in $REGION"
  ;;
*)
  echo "say create or delete, but not '${1:-}'" >&2
  exit 2
  ;;
esac
